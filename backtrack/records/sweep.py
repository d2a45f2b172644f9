"""The rule's answers at every weight: `sweep.json`."""

from __future__ import annotations

from backtrack.records.record import Record, Role


class SweptWeight(Record):
    """The rule's answers at one weight, under any bounds.

    Attributes:
        weight: Weight of the target in the utility.
        tops: Candidates of highest smoothed utility under some bounds, highest first: the first
            that meets the given bounds is the top.
        tied: For each top, the candidates that cannot be told apart from it, as bits.
        open: For each top, those of the tied that the rule may choose, as bits.
        smoothed: Utility of the smoothed scores by candidate, in points.
        to_base: For each candidate in `Sweep.choosable`, interval of its utility minus the base's,
            low and high, in points, on the selection items.
        to_final: The same minus the final checkpoint's.
    """

    weight: float
    tops: tuple[int, ...]
    tied: tuple[str, ...]
    open: tuple[str, ...]
    smoothed: tuple[float, ...]
    to_base: tuple[tuple[float, float], ...]
    to_final: tuple[tuple[float, float], ...]


class BoundedScores(Record):
    """Smoothed scores of the candidates that bounds apply to; more is better.

    Attributes:
        values: In points or the objective's unit, by candidate.
        errors: Standard errors of the values.
        gap_errors: Standard errors of the values minus the base's.
        gap_covariances: Covariances of the values minus the base's with that of the final
            checkpoint.
    """

    values: tuple[float, ...]
    errors: tuple[float, ...]
    gap_errors: tuple[float, ...]
    gap_covariances: tuple[float, ...]


class Sweep(Record):
    """The choice at every hundredth of weight and under any bounds: `sweep.json`.

    A reader needs no statistics. A bound is met where the value less `margin` of its standard
    errors is high enough. At a weight, the top is the first of `tops` that meets the bounds; the
    choice is the first of `preferred` that meets them and is `open` for that top. Candidates are
    given by their index in `Selection.candidates`. Bits are base64 of bytes, lowest bit first.

    Attributes:
        created: Time of the selection it belongs to.
        base: Index of the base.
        final: Index of the final checkpoint.
        points: Role scores by candidate, in points.
        bounded_roles: What bounds on roles apply to.
        bounded_objectives: What bounds on objectives apply to, by name.
        margin: Standard errors by which a bound must be exceeded.
        intervals: Intervals of the role scores by candidate, low and high, in the unit of the
            axis, on the selection items.
        preferred: All candidates, nearest to the base first.
        choosable: Candidates that are the choice at some weight under some bounds.
        weights: Answers by weight, ascending; the selection's own weight is among them.
        is_whole: Whether tops are listed for all bounds; if not, bounds that rule out the best
            points of a weight may have no answer.
    """

    created: str
    base: int
    final: int
    points: dict[Role, tuple[float, ...]]
    bounded_roles: dict[Role, BoundedScores]
    bounded_objectives: dict[str, BoundedScores]
    margin: float
    intervals: dict[Role, tuple[tuple[float, float], ...]]
    preferred: tuple[int, ...]
    choosable: tuple[int, ...]
    weights: tuple[SweptWeight, ...]
    is_whole: bool = True
