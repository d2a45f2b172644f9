"""From tables of scores to the records of a selection: candidates, report, differences, verdict.

Pure. The yardsticks are made once, from the selection items, and serve the report items too; the
bootstrap holds them fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from backtrack.errors import SelectionError
from backtrack.point import Point
from backtrack.records import ROLES, Candidate, Difference, Interval, ReportRow
from backtrack.selection import front
from backtrack.selection.choosing import choose
from backtrack.selection.statistics import (
    deviation,
    interval,
    items_to_settle,
    pooled_deviation,
    resample_means,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from backtrack.records import Axis, Constraints, ObjectiveInfo, Role, Yardstick
    from backtrack.selection.choosing import Decision
    from backtrack.selection.measured import Table

    Floats = NDArray[np.float64]
    Means = Mapping[str, Floats]

Compared = Literal["base", "chosen", "final"]


@dataclass(frozen=True)
class Reading:
    """A table read under a weight: scores, their bootstrap samples, and what they come to.

    Attributes:
        table: The scores.
        yardsticks: How they become points.
        weight: Of the target.
        seed: Of the bootstrap.
    """

    table: Table
    yardsticks: Mapping[str, Yardstick]
    weight: float
    seed: int

    @cached_property
    def samples(self) -> dict[str, Floats]:
        """Resampled means by objective, [resamples, points]."""
        setting = self.table.setting
        return {
            name: resample_means(
                scores,
                setting.item_ids[name],
                seed=self.seed,
                name=f"{setting.split}/{name}",
            )
            for name, scores in self.table.scores.items()
        }

    @cached_property
    def utilities(self) -> Floats:
        """Utility as measured, in points, [points]."""
        return self._utility(self.table.means)

    @cached_property
    def utility_samples(self) -> Floats:
        """Likewise, [resamples, points]."""
        return self._utility(self.samples)

    def role(self, role: Role) -> Floats:
        """Role scores in the unit of the axis, [points]."""
        return self._role(self.table.means, role)

    def role_samples(self, role: Role) -> Floats:
        """Likewise, [resamples, points]."""
        return self._role(self.samples, role)

    def bounds(self, base: int, final: int, constraints: Constraints) -> tuple[front.Bound, ...]:
        """The constraints on these items."""
        target, general = (
            front.role_points(self.table.means, self._objectives, self.yardsticks, role)
            for role in ROLES
        )
        return front.bounds(target, general, base, final, constraints)

    def items_to_settle(self, column: int, other: int, difference: float) -> int | None:
        """Items a role needed to see a utility difference between two points."""
        slopes = front.utility_slopes(self._objectives, self.yardsticks, self.weight)
        parts: dict[str, float] = {}
        for name, scores in self.table.scores.items():
            item_ids = self.table.setting.item_ids[name]
            spread = deviation(scores[column] - scores[other], item_ids)
            parts[name] = abs(slopes[name]) * spread
        sharing = {o.name: len(front.of_role(self._objectives, o.role)) for o in self._objectives}
        return items_to_settle(pooled_deviation(parts, sharing), difference)

    @property
    def _objectives(self) -> Sequence[ObjectiveInfo]:
        return self.table.setting.objectives

    def _role(self, means: Means, role: Role) -> Floats:
        return front.role_scores(means, self._objectives, self.yardsticks, role)

    def _utility(self, means: Means) -> Floats:
        return front.utility(means, self._objectives, self.yardsticks, self.weight)


@dataclass(frozen=True)
class Judgement:
    """What the selection items say.

    Attributes:
        reading: The selection items.
        base: Column of the base.
        final: Column of the final checkpoint.
        decision: What the rule made of them.
        candidates: The points, as records.
    """

    reading: Reading
    base: int
    final: int
    decision: Decision
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Point:
        return self.reading.table.points[self.decision.chosen]


def judge(
    table: Table, final: Point, weight: float, constraints: Constraints, seed: int
) -> Judgement:
    """Choose among the points of a table.

    Args:
        table: Scores on the selection items; holds base and final checkpoint.
        final: The final checkpoint.
        weight: Of the target.
        constraints: Bounds a point must meet.
        seed: Of the bootstrap.

    Raises:
        SelectionError: No point meets the constraints.
    """
    base_column, final_column = table.column(Point.base()), table.column(final)
    objectives = table.setting.objectives
    yardsticks = front.make_yardsticks(objectives, table.means, base_column, final_column)
    reading = Reading(table, yardsticks, weight, seed)
    found = reading.bounds(base_column, final_column, constraints)
    is_feasible = front.feasible(found, len(table.points))
    if not is_feasible.any():
        raise SelectionError(_out_of_reach(found, table.points))
    decision = choose(
        table.points, table.distances, reading.utilities, reading.utility_samples, is_feasible
    )
    candidates = _candidates(reading, decision, is_feasible)
    return Judgement(reading, base_column, final_column, decision, candidates)


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
    reading: Reading, decision: Decision, is_feasible: NDArray[np.bool_]
) -> tuple[Candidate, ...]:
    table = reading.table
    target, general = reading.role("target"), reading.role("general")
    on_front = front.pareto_front(target, general, axes_of(table))
    return tuple(
        Candidate(
            point=point,
            scores={name: float(means[i]) for name, means in table.means.items()},
            target=float(target[i]),
            general=float(general[i]),
            utility=float(reading.utilities[i]),
            smoothed=float(decision.smoothed[i]),
            distance=float(table.distances[i]),
            origin=table.origins[i],
            is_on_front=bool(on_front[i]),
            is_feasible=bool(is_feasible[i]),
            is_tied=bool(decision.is_tied[i]),
            chance_best=float(decision.chances[i]),
        )
        for i, point in enumerate(table.points)
    )


def axes_of(table: Table) -> dict[Role, Axis]:
    """How each role's numbers read."""
    return {role: front.role_axis(table.setting.objectives, role) for role in ROLES}


def report_rows(reading: Reading, points: Mapping[Compared, Point]) -> dict[Compared, ReportRow]:
    """Scores on the report items, with intervals."""
    columns = {key: reading.table.column(point) for key, point in points.items()}
    return {
        key: ReportRow(
            point=points[key],
            scores={name: float(means[i]) for name, means in reading.table.means.items()},
            target=interval(reading.role("target")[i], reading.role_samples("target")[:, i]),
            general=interval(reading.role("general")[i], reading.role_samples("general")[:, i]),
            utility=interval(reading.utilities[i], reading.utility_samples[:, i]),
        )
        for key, i in columns.items()
    }


def difference(reading: Reading, chosen: Point, other: Point, to: Compared) -> Difference:
    """Chosen minus other, item by item."""
    i, j = reading.table.column(chosen), reading.table.column(other)

    def paired(values: Floats, samples: Floats) -> Interval:
        return interval(values[i] - values[j], samples[:, i] - samples[:, j])

    utility = paired(reading.utilities, reading.utility_samples)
    return Difference.model_validate(
        {
            "to": to,
            "target": paired(reading.role("target"), reading.role_samples("target")),
            "general": paired(reading.role("general"), reading.role_samples("general")),
            "utility": utility,
            "items_to_settle": reading.items_to_settle(i, j, utility.estimate),
        }
    )
