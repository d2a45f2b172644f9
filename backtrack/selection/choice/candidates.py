"""From what selection items say of points to the choice and its candidates. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from backtrack.errors import SelectionError
from backtrack.point import Point
from backtrack.records import ROLES
from backtrack.records.selection import Candidate, WeightRange
from backtrack.selection.choice.rule import choose
from backtrack.selection.stats import front
from backtrack.selection.stats.bootstrap import LEVEL, interval
from backtrack.selection.stats.scores import read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from backtrack.records import Interval
    from backtrack.records.selection import Constraints
    from backtrack.selection.choice.rule import Decision
    from backtrack.selection.stats.scores import WeightedScores
    from backtrack.selection.stats.table import ScoreTable

    Floats = NDArray[np.float64]

_NO_BOX = 1e-6
"""Square points: less is rounding."""


@dataclass(frozen=True)
class Outcome:
    """What the selection items say.

    Attributes:
        reading: The selection items.
        base: Column of the base.
        final: Column of the final checkpoint.
        decision: What the rule made of them.
        candidates: The points, as records.
    """

    weighted: WeightedScores
    base: int
    final: int
    decision: Decision
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Point:
        return self.weighted.table.points[self.decision.chosen]


def judge(
    table: ScoreTable, final: Point, weight: float, constraints: Constraints, seed: int
) -> Outcome:
    """Choose among the points of a table.

    Args:
        table: Scores on the selection items; holds base and final checkpoint, whole.
        final: The final checkpoint.
        weight: Of the target.
        constraints: Bounds a point must meet.
        seed: Of the bootstrap.

    Raises:
        SelectionError: No point meets the constraints.
    """
    weighted = read(table, final, weight, seed)
    return outcome_of(weighted, final, constraints)


def outcome_of(weighted: WeightedScores, final: Point, constraints: Constraints) -> Outcome:
    """Choose among the points of weighted selection items.

    Raises:
        SelectionError: No point meets the constraints.
    """
    table = weighted.table
    base_column, final_column = table.column(Point.base()), table.column(final)
    found = weighted.bounds(base_column, final_column, constraints)
    is_feasible = front.feasible(found, len(table.points))
    if not (is_feasible & weighted.smoothed_scores.is_held).any():
        raise SelectionError(_out_of_reach(found, table.points))
    decision = choose(weighted.smoothed_scores, is_feasible)
    candidates = _candidates(weighted, decision, is_feasible)
    return Outcome(weighted, base_column, final_column, decision, candidates)


def knee(table: ScoreTable, final: Point, seed: int) -> float:
    """The weight at which the point of highest utility is the knee of the front."""
    smoothed_scores = read(table, final, 0.5, seed).smoothed_scores
    target, general = smoothed_scores.smoothed_roles
    return front.knee_weight(target, general, smoothed_scores.is_on_front)


def weight_ranges(outcome: Outcome, constraints: Constraints) -> tuple[WeightRange, ...]:
    """The chosen point at each hundredth of weight from 0 to 1, neighbours put together.

    Every tenth is looked at, and hundredths where the choice changes between two tenths.
    """
    weighted = outcome.weighted
    bounds = weighted.bounds(outcome.base, outcome.final, constraints)
    is_feasible = front.feasible(bounds, len(weighted.table.points))
    columns: dict[int, int] = {}

    def look(hundredth: int) -> int:
        if hundredth not in columns:
            weight = hundredth / 100
            columns[hundredth] = choose(weighted.at(weight).smoothed_scores, is_feasible).chosen
        return columns[hundredth]

    def fill(low: int, high: int) -> None:
        if high - low <= 10 and look(low) == look(high):
            columns.update(dict.fromkeys(range(low, high + 1), look(low)))
        elif high - low > 1:
            fill(low, (low + high) // 2)
            fill((low + high) // 2, high)

    for tenth in range(10):
        fill(10 * tenth, 10 * tenth + 10)
    return tuple(_ranges(weighted, [look(hundredth) for hundredth in range(101)]))


def _ranges(weighted: WeightedScores, columns: Sequence[int]) -> Iterator[WeightRange]:
    """Runs of equal columns, the weight rising by a hundredth."""
    target, general = weighted.role("target"), weighted.role("general")
    for column, run in groupby(range(len(columns)), key=lambda i: columns[i]):
        hundredths = list(run)
        yield WeightRange(
            low=hundredths[0] / 100,
            high=hundredths[-1] / 100,
            point=weighted.table.points[column],
            target=float(target[column]),
            general=float(general[column]),
        )


def front_hypervolume(outcome: Outcome) -> Interval | None:
    """Share of the box from the worse of base and final to the best seen that is dominated.

    By smoothed scores; the points on the front stay the same in every sample.
    """
    smoothed_scores = outcome.weighted.smoothed_scores
    values, samples = smoothed_scores.smoothed_roles, smoothed_scores.smoothed_role_samples
    corner = values[:, [outcome.base, outcome.final]].min(axis=1)
    on_front = np.flatnonzero(smoothed_scores.is_on_front)
    box = float(np.prod(values[:, on_front].max(axis=1) - corner))
    if box <= _NO_BOX:
        return None

    def share(roles: Floats) -> float:
        target, general = roles[:, on_front]
        return front.hypervolume(target, general, (corner[0], corner[1])) / box

    return interval(share(values), np.array([share(drawn) for drawn in samples.swapaxes(0, 1)]))


def _out_of_reach(found: Sequence[front.Bound], points: Sequence[Point]) -> str:
    """Which constraint rules out how many points, and how near the rest of them come."""
    lines = [f"none of the {len(points)} measured points meets every constraint."]
    for bound in found:
        ruled_out = int((~bound.is_met).sum())
        line = f"  {bound.name} {bound.asked:g} rules out {ruled_out}"
        others = front.feasible([other for other in found if other is not bound], len(points))
        if others.any():
            nearest = max(np.flatnonzero(others), key=lambda i: bound.values[i])
            reached = float(bound.values[nearest]) * bound.scale
            line += f"; of those that meet the rest, {points[nearest]} is nearest: {reached:.4g}"
        lines.append(line)
    return "\n".join([*lines, "Loosen one of them, or search more points."])


def _candidates(
    weighted: WeightedScores, decision: Decision, is_feasible: NDArray[np.bool_]
) -> tuple[Candidate, ...]:
    table = weighted.table
    target, general = weighted.role("target"), weighted.role("general")
    on_front = weighted.smoothed_scores.is_on_front
    smoothings = weighted.smoothed_scores.smoothings
    fitted = [
        smoothing.matrix @ scores
        for smoothing, scores in zip(smoothings, (target, general), strict=True)
    ]
    bands = [
        _band(weighted.role_samples(role) @ smoothing.matrix.T)
        for smoothing, role in zip(smoothings, ROLES, strict=True)
    ]
    return tuple(
        Candidate(
            point=point,
            scores={name: float(means[i]) for name, means in table.means.items()},
            target=float(target[i]),
            general=float(general[i]),
            utility=float(weighted.utilities[i]),
            smoothed=float(decision.smoothed[i]),
            smoothed_target=float(fitted[0][i]),
            smoothed_general=float(fitted[1][i]),
            distance=float(table.distances[i]),
            origin=table.origins[i],
            is_on_front=bool(on_front[i]),
            is_feasible=bool(is_feasible[i]),
            is_tied=bool(decision.is_tied[i]),
            chance_best=float(decision.chances[i]),
            share=float(table.shares[i]),
            target_band=bands[0][i],
            general_band=bands[1][i],
        )
        for i, point in enumerate(table.points)
    )


def _band(samples: Floats) -> list[tuple[float, float]]:
    """Interval of each column, low and high; samples are [resamples, points]."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(samples, (tail, 1 - tail), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
