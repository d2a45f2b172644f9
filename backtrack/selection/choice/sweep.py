"""The rule's answers at every weight and under any bounds, for a page that chooses without Python.

Of the rule (see `choosing`) only this depends on bounds: which points may be chosen. So for each
weight the order of the tops and, for each of them, what is tied with it and what is open to it are
worked out here, and whoever has the bounds takes the first that meets them, twice.

Promised: the answer is that of `select` at the same weight and bounds, for each weight kept.
Not promised: answers under bounds that rule out the `MAX_TOPS` best points, where there are more.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backtrack.records import ROLES
from backtrack.records.sweep import Sweep, SweptWeight
from backtrack.selection.choice.rule import tied_with, worth_choosing
from backtrack.selection.stats.bootstrap import LEVEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backtrack.records import ObjectiveInfo
    from backtrack.selection.choice.candidates import Outcome
    from backtrack.selection.choice.rule import SmoothedScores
    from backtrack.selection.stats.scores import WeightedScores

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

MAX_TOPS = 64
"""Tops kept a weight."""
MAX_POINTS = 1000
"""Candidates beyond which no table is made: it grows with their square."""


@dataclass(frozen=True)
class _Answers:
    """What the rule says at one weight; flags are [points]."""

    weight: float
    tops: tuple[int, ...]
    tied: tuple[Flags, ...]
    open: tuple[Flags, ...]
    smoothed: Floats


def sweep(outcome: Outcome, created: str) -> Sweep | None:
    """The table of answers to an outcome; none where there are too many candidates.

    Args:
        outcome: Of the selection items.
        created: Time of the selection it belongs to.
    """
    weighted = outcome.weighted
    if len(weighted.table.points) > MAX_POINTS:
        return None
    weights = sorted({*(i / 100 for i in range(101)), weighted.weight})
    bounded = _bounded(weighted)
    found = [_answers(weighted.at(weight).smoothed_scores, weight, bounded) for weight in weights]
    choosable = np.flatnonzero(np.any([flags for each in found for flags in each.open], axis=0))
    ends = [_gaps(weighted, choosable, end) for end in (outcome.base, outcome.final)]
    return Sweep(
        created=created,
        base=outcome.base,
        final=outcome.final,
        points={role: tuple(map(float, weighted.role_points(role))) for role in ROLES},
        intervals={role: _pairs(weighted.role_samples(role)) for role in ROLES},
        preferred=tuple(weighted.smoothed_scores.preferred()),
        choosable=tuple(map(int, choosable)),
        weights=tuple(_record(each, ends) for each in found),
        is_whole=all(len(each.tops) < MAX_TOPS for each in found),
    )


def _bounded(weighted: WeightedScores) -> Floats:
    """All that bounds can be set on, more being better: [points, roles and objectives]."""
    objectives: Sequence[ObjectiveInfo] = weighted.table.setting.objectives
    means = weighted.table.means
    signed = [means[o.name] * (1 if o.direction == "maximize" else -1) for o in objectives]
    return np.array([*(weighted.role_points(role) for role in ROLES), *signed]).T


def _answers(smoothed_scores: SmoothedScores, weight: float, bounded: Floats) -> _Answers:
    tops = _tops(smoothed_scores.ranked(), bounded)
    tied = [tied_with(smoothed_scores, top) & smoothed_scores.is_held for top in tops]
    is_open = [
        flags & worth_choosing(smoothed_scores, top) for top, flags in zip(tops, tied, strict=True)
    ]
    return _Answers(weight, tuple(tops), tuple(tied), tuple(is_open), smoothed_scores.smoothed)


def _tops(ranked: Sequence[int], bounded: Floats) -> list[int]:
    """Those of the ranked that no better one stands in for under every bound."""
    tops: list[int] = []
    for column in ranked:
        if not (bounded[tops] >= bounded[column]).all(axis=1).any():
            tops.append(column)
        if len(tops) == MAX_TOPS:
            break
    return tops


def _gaps(weighted: WeightedScores, columns: NDArray[np.int64], end: int) -> dict[str, Floats]:
    """Samples of the columns' role points less an end's, [resamples, columns]."""
    samples = {role: weighted.role_point_samples(role) for role in ROLES}
    return {role: found[:, columns] - found[:, [end]] for role, found in samples.items()}


def _record(answers: _Answers, ends: Sequence[dict[str, Floats]]) -> SweptWeight:
    share = answers.weight
    gaps = [share * end["target"] + (1 - share) * end["general"] for end in ends]
    return SweptWeight(
        weight=answers.weight,
        tops=answers.tops,
        tied=tuple(map(_bits, answers.tied)),
        open=tuple(map(_bits, answers.open)),
        smoothed=tuple(round(float(value), 4) for value in answers.smoothed),
        to_base=_pairs(gaps[0]),
        to_final=_pairs(gaps[1]),
    )


def _pairs(samples: Floats) -> tuple[tuple[float, float], ...]:
    """Low and high of each column's interval."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(samples, (tail, 1 - tail), axis=0)
    return tuple((round(float(a), 6), round(float(b), 6)) for a, b in zip(low, high, strict=True))


def _bits(flags: Flags) -> str:
    return base64.b64encode(np.packbits(flags, bitorder="little").tobytes()).decode()
