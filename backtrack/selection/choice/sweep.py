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
    from backtrack.selection.choice.candidates import Judgement
    from backtrack.selection.choice.rule import Measured
    from backtrack.selection.stats.scores import Reading

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


def sweep(judgement: Judgement, created: str) -> Sweep | None:
    """The table of answers to a judgement; none where there are too many candidates.

    Args:
        judgement: Of the selection items.
        created: Time of the selection it belongs to.
    """
    reading = judgement.reading
    if len(reading.table.points) > MAX_POINTS:
        return None
    weights = sorted({*(i / 100 for i in range(101)), reading.weight})
    bounded = _bounded(reading)
    found = [_answers(reading.at(weight).measured, weight, bounded) for weight in weights]
    choosable = np.flatnonzero(np.any([flags for each in found for flags in each.open], axis=0))
    ends = [_gaps(reading, choosable, end) for end in (judgement.base, judgement.final)]
    return Sweep(
        created=created,
        base=judgement.base,
        final=judgement.final,
        points={role: tuple(map(float, reading.role_points(role))) for role in ROLES},
        intervals={role: _pairs(reading.role_samples(role)) for role in ROLES},
        preferred=tuple(reading.measured.preferred()),
        choosable=tuple(map(int, choosable)),
        weights=tuple(_record(each, ends) for each in found),
        is_whole=all(len(each.tops) < MAX_TOPS for each in found),
    )


def _bounded(reading: Reading) -> Floats:
    """All that bounds can be set on, more being better: [points, roles and objectives]."""
    objectives: Sequence[ObjectiveInfo] = reading.table.setting.objectives
    means = reading.table.means
    signed = [means[o.name] * (1 if o.direction == "maximize" else -1) for o in objectives]
    return np.array([*(reading.role_points(role) for role in ROLES), *signed]).T


def _answers(measured: Measured, weight: float, bounded: Floats) -> _Answers:
    tops = _tops(measured.ranked(), bounded)
    tied = [tied_with(measured, top) & measured.is_held for top in tops]
    is_open = [
        flags & worth_choosing(measured, top) for top, flags in zip(tops, tied, strict=True)
    ]
    return _Answers(weight, tuple(tops), tuple(tied), tuple(is_open), measured.smoothed)


def _tops(ranked: Sequence[int], bounded: Floats) -> list[int]:
    """Those of the ranked that no better one stands in for under every bound."""
    tops: list[int] = []
    for column in ranked:
        if not (bounded[tops] >= bounded[column]).all(axis=1).any():
            tops.append(column)
        if len(tops) == MAX_TOPS:
            break
    return tops


def _gaps(reading: Reading, columns: NDArray[np.int64], end: int) -> dict[str, Floats]:
    """Samples of the columns' role points less an end's, [resamples, columns]."""
    samples = {role: reading.role_point_samples(role) for role in ROLES}
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
