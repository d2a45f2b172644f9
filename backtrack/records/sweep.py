"""The rule's answers at every weight: `sweep.json`."""

from __future__ import annotations

from backtrack.records.record import Record, Role


class SweptWeight(Record):
    """What the rule of choosing says at one weight, whatever the bounds.

    Attributes:
        weight: Of the target in the utility.
        tops: Candidates that have the highest smoothed utility under some bounds, the best first:
            the first that meets the bounds at hand is the top.
        tied: For each top the candidates that cannot be told apart from it, as bits.
        open: Likewise those of them that the rule may choose.
        smoothed: Utility of smoothed scores, in points, by candidate.
        to_base: Interval of the utility of each candidate in `Sweep.choosable` less the base's,
            low and high, in points, on the selection items.
        to_final: Likewise to the final checkpoint.
    """

    weight: float
    tops: tuple[int, ...]
    tied: tuple[str, ...]
    open: tuple[str, ...]
    smoothed: tuple[float, ...]
    to_base: tuple[tuple[float, float], ...]
    to_final: tuple[tuple[float, float], ...]


class Sweep(Record):
    """The selection at every hundredth of weight and under any bounds: `sweep.json`.

    Nothing statistical is left to do: at a weight the top is the first of `tops` that meets the
    bounds; the choice is the first of `preferred` that meets them and is `open` to that top.
    Candidates are told by their place in `Selection.candidates`. Bits are base64 of bytes, the
    lowest bit first.

    Attributes:
        created: Of the selection it belongs to.
        base: Place of the base among the candidates.
        final: Likewise of the final checkpoint.
        points: Role scores in points by candidate, which the bounds on roles are held against.
        intervals: Of the role scores by candidate, low and high, in the unit of the axis, on the
            selection items.
        preferred: All candidates, nearest the base first.
        choosable: Candidates that are the choice at some weight under some bounds.
        weights: Ascending; the selection's own is among them.
        is_whole: Tops were kept for all bounds; else only for those of each weight's best points.
    """

    created: str
    base: int
    final: int
    points: dict[Role, tuple[float, ...]]
    intervals: dict[Role, tuple[tuple[float, float], ...]]
    preferred: tuple[int, ...]
    choosable: tuple[int, ...]
    weights: tuple[SweptWeight, ...]
    is_whole: bool = True
