"""The rule's answers at every weight, and from them the ranges of weight and `sweep.json`. Pure.

Bounds affect the rule (see `rule`) only through the set of points that may be chosen. So at each
weight the possible tops are listed in order, each with the points tied with it and those of them
that may be chosen. Under any bounds, the top is the first of these that meets the bounds, and the
choice is the first of the points that may be chosen, nearest the base first, that meets them.

Promised: each answer is that of `select` at the same weight and bounds.
Not promised: answers under bounds that rule out the `MAX_TOPS` best points, if there are more.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from backtrack.records import ROLES
from backtrack.records.selection import WeightRange
from backtrack.records.sweep import BoundedScores, Sweep, SweptWeight
from backtrack.selection.choice.rule import first_open, tied_with, worth_choosing
from backtrack.selection.stats.bootstrap import percentile_bounds
from backtrack.selection.stats.comparisons import role_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from backtrack.records import Role
    from backtrack.selection.choice.candidates import Outcome
    from backtrack.selection.stats.bounds import BoundedScore
    from backtrack.selection.stats.scores import RoleScores
    from backtrack.selection.stats.smoothed import SmoothedScores

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

MAX_TOPS = 64
"""Tops listed per weight."""
MAX_POINTS = 1000
"""Candidates beyond which no `sweep.json` is made: its size is quadratic in them."""
_SHARES = tuple(i / 20 for i in range(21))
"""Shares of the gain at which tops are compared under `keep_gain`."""
_HUNDREDTHS = tuple(i / 100 for i in range(101))


@dataclass(frozen=True)
class Answer:
    """The rule's answer at one weight.

    Attributes:
        chosen: Column of the choice under the bounds of the selection.
        tops: Columns that are the top under some bounds, highest smoothed utility first.
        tied: For each top, whether each point is tied with it, [points].
        open: For each top, whether each point may be chosen, [points].
        smoothed: Smoothed utility, in points, [points].
    """

    chosen: int
    tops: tuple[int, ...]
    tied: tuple[Flags, ...]
    open: tuple[Flags, ...]
    smoothed: Floats


def answer_weights(outcome: Outcome, *, is_cautious: bool = False) -> dict[float, Answer]:
    """Answer at every hundredth of weight and at the outcome's own, by weight, ascending.

    Tops under other bounds than the outcome's are listed only for `MAX_POINTS` points or fewer.
    """
    roles = outcome.scores.smoothed
    bounded = _bounded(outcome) if len(roles.points) <= MAX_POINTS else None
    weights = sorted({*_HUNDREDTHS, outcome.weighted.weight})
    return {
        weight: _answer(roles.at(weight), bounded, outcome.is_feasible, is_cautious=is_cautious)
        for weight in weights
    }


def weight_ranges(outcome: Outcome, answers: Mapping[float, Answer]) -> tuple[WeightRange, ...]:
    """Join neighbouring hundredths of weight with the same choice."""
    table = outcome.scores.table
    target, general = outcome.scores.role("target"), outcome.scores.role("general")
    ranges: list[WeightRange] = []
    for column, group in groupby(_HUNDREDTHS, key=lambda weight: answers[weight].chosen):
        weights = list(group)
        ranges.append(
            WeightRange(
                low=weights[0],
                high=weights[-1],
                point=table.points[column],
                target=float(target[column]),
                general=float(general[column]),
            )
        )
    return tuple(ranges)


def make_sweep(outcome: Outcome, answers: Mapping[float, Answer], created: str) -> Sweep | None:
    """Make the record of the answers; None if there are more than `MAX_POINTS` candidates.

    Args:
        outcome: The choice on the selection items.
        answers: See `answer_weights`.
        created: Time of the selection.
    """
    scores = outcome.scores
    if len(scores.table.points) > MAX_POINTS:
        return None
    is_choosable = np.any([flags for answer in answers.values() for flags in answer.open], axis=0)
    choosable = np.flatnonzero(is_choosable)
    gaps = [_gaps(scores, choosable, end) for end in (outcome.base, outcome.final)]
    return Sweep(
        created=created,
        base=outcome.base,
        final=outcome.final,
        points={role: tuple(map(float, scores.role(role))) for role in ROLES},
        bounded_roles={r: _bounded_record(outcome, scores.bounded_role(r)) for r in ROLES},
        bounded_objectives={
            o.name: _bounded_record(outcome, scores.bounded_objective(o.name))
            for o in scores.objectives
        },
        margin=outcome.margin,
        intervals={role: _role_intervals(scores, role) for role in ROLES},
        preferred=tuple(scores.smoothed.preferred),
        choosable=tuple(map(int, choosable)),
        weights=tuple(_record(weight, answer, gaps) for weight, answer in answers.items()),
        is_whole=all(len(answer.tops) < MAX_TOPS for answer in answers.values()),
    )


def _answer(
    scores: SmoothedScores, bounded: Floats | None, is_feasible: Flags, *, is_cautious: bool
) -> Answer:
    ranked = scores.ranked()
    top = next(column for column in ranked if is_feasible[column])
    tops = [top] if bounded is None else _tops(ranked, bounded)
    flags = {column: _tied_and_open(scores, column, is_cautious=is_cautious) for column in tops}
    # The top may lie beyond `MAX_TOPS`.
    _, is_open = flags.get(top) or _tied_and_open(scores, top, is_cautious=is_cautious)
    return Answer(
        chosen=first_open(scores, is_feasible & is_open),
        tops=tuple(tops),
        tied=tuple(is_tied for is_tied, _ in flags.values()),
        open=tuple(is_open for _, is_open in flags.values()),
        smoothed=scores.smoothed,
    )


def _tied_and_open(scores: SmoothedScores, top: int, *, is_cautious: bool) -> tuple[Flags, Flags]:
    is_eligible = scores.roles.is_eligible
    is_tied = tied_with(scores, top) & is_eligible
    is_open = worth_choosing(scores, top, is_tied if is_cautious else None) & is_eligible
    return is_tied, is_open


def _bounded(outcome: Outcome) -> Floats:
    """Stack the lower ends of all values that bounds can be set on, [points, values]."""
    scores, base = outcome.scores, outcome.base
    target, general = (scores.bounded_role(role) for role in ROLES)
    gains = target.minus(base)
    shares = _SHARES if target.gain(base, outcome.final) else (0.0,)
    bounded = [target, general.minus(base), *(gains.minus(outcome.final, s) for s in shares)]
    for objective in scores.objectives:
        score = scores.bounded_objective(objective.name)
        bounded += [score, score.minus(base)]
    return np.array([each.values - outcome.margin * each.errors for each in bounded]).T


def _tops(ranked: Sequence[int], bounded: Floats) -> list[int]:
    """List the first columns of which no higher ranked one meets every bound that they meet."""
    tops: list[int] = []
    for column in ranked:
        if not (bounded[tops] >= bounded[column]).all(axis=1).any():
            tops.append(column)
        if len(tops) == MAX_TOPS:
            break
    return tops


def _bounded_record(outcome: Outcome, score: BoundedScore) -> BoundedScores:
    gaps = score.minus(outcome.base)
    to_final = gaps.samples[:, outcome.final] - gaps.samples[:, outcome.final].mean()
    return BoundedScores(
        values=tuple(score.values.tolist()),
        errors=tuple(score.errors.tolist()),
        gap_errors=tuple(gaps.errors.tolist()),
        gap_covariances=tuple((to_final @ gaps.samples / len(to_final)).tolist()),
    )


def _role_intervals(scores: RoleScores, role: Role) -> tuple[tuple[float, float], ...]:
    intervals = [role_interval(scores, role, i) for i in range(len(scores.table.points))]
    return tuple((round(each.low, 6), round(each.high, 6)) for each in intervals)


def _gaps(scores: RoleScores, columns: NDArray[np.int64], end: int) -> dict[str, Floats]:
    """Subtract an end's role points from those of columns, by sample, [resamples, columns]."""
    samples = {role: scores.role_samples(role) for role in ROLES}
    return {role: values[:, columns] - values[:, [end]] for role, values in samples.items()}


def _record(weight: float, answer: Answer, gaps: Sequence[dict[str, Floats]]) -> SweptWeight:
    to_base, to_final = (weight * gap["target"] + (1 - weight) * gap["general"] for gap in gaps)
    return SweptWeight(
        weight=weight,
        tops=answer.tops,
        tied=tuple(map(_bits, answer.tied)),
        open=tuple(map(_bits, answer.open)),
        smoothed=tuple(round(float(value), 4) for value in answer.smoothed),
        to_base=_rounded_bounds(to_base),
        to_final=_rounded_bounds(to_final),
    )


def _rounded_bounds(samples: Floats) -> tuple[tuple[float, float], ...]:
    return tuple((round(low, 6), round(high, 6)) for low, high in percentile_bounds(samples))


def _bits(flags: Flags) -> str:
    return base64.b64encode(np.packbits(flags, bitorder="little").tobytes()).decode()
