"""A table read under a weight: scores in points, their bootstrap samples, what they come to. Pure.

Yardsticks are made once, from the selection items, and serve the report items too; the bootstrap
holds them fixed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from backtrack.point import Point
from backtrack.records import ROLES, Axis
from backtrack.selection.choice.rule import SmoothedScores
from backtrack.selection.stats import front
from backtrack.selection.stats.bootstrap import (
    NUM_RESAMPLES,
    deviation,
    item_weights,
    items_to_settle,
    pooled_deviation,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from backtrack.records import ObjectiveInfo, Role
    from backtrack.records.selection import Constraints, Yardstick
    from backtrack.selection.stats.table import ScoreTable

    Floats = NDArray[np.float64]
    Means = Mapping[str, Floats]


@dataclass(frozen=True)
class WeightedScores:
    """A table read under a weight: scores, their bootstrap samples, and what they come to.

    Attributes:
        table: The scores.
        yardsticks: How they become points.
        weight: Of the target.
        seed: Of the bootstrap.
        num_resamples: Likewise.
    """

    table: ScoreTable
    yardsticks: Mapping[str, Yardstick]
    weight: float
    seed: int
    num_resamples: int = NUM_RESAMPLES

    @cached_property
    def samples(self) -> dict[str, Floats]:
        """Resampled means by objective, [resamples, points]."""
        setting = self.table.setting
        return {
            name: completed.sampled(
                item_weights(
                    tuple(setting.item_ids[name]),
                    self.seed,
                    f"{setting.split}/{name}",
                    self.num_resamples,
                )
            )
            for name, completed in self.table.completed.items()
        }

    def at(self, weight: float) -> WeightedScores:
        """The same under another weight; what was drawn is kept."""
        other = replace(self, weight=weight)
        other.__dict__["samples"] = self.samples
        other.__dict__["measured"] = self.smoothed_scores.at(weight)
        return other

    @cached_property
    def smoothed_scores(self) -> SmoothedScores:
        """What the rule of choosing looks at."""
        table = self.table
        roles = np.stack([self.role_points(role) for role in ROLES])
        samples = np.stack([self.role_point_samples(role) for role in ROLES])
        errors = np.stack([self._role_errors(role) for role in ROLES])
        return SmoothedScores(
            table.points, table.distances, table.shares, self.weight, roles, samples, errors
        )

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

    def role_points(self, role: Role) -> Floats:
        """Role scores in points, [points]."""
        return front.role_points(self.table.means, self._objectives, self.yardsticks, role)

    def role_point_samples(self, role: Role) -> Floats:
        """Likewise, [resamples, points]."""
        return front.role_points(self.samples, self._objectives, self.yardsticks, role)

    def bounds(self, base: int, final: int, constraints: Constraints) -> tuple[front.Bound, ...]:
        """The constraints on these items."""
        target, general = (self.role_points(role) for role in ROLES)
        return (
            *front.bounds(target, general, base, final, constraints),
            *front.objective_bounds(self.table.means, self._objectives, base, constraints),
        )

    def items_to_settle(self, column: int, other: int, difference: float) -> int | None:
        """Items a role needed to see a utility difference between two points."""
        slopes = front.utility_slopes(self._objectives, self.yardsticks, self.weight)
        parts: dict[str, float] = {}
        for name, scores in self.table.scores.items():
            item_ids = self.table.setting.item_ids[name]
            there = np.isfinite(scores[column] - scores[other])
            spread = deviation(
                (scores[column] - scores[other])[there],
                [item_id for item_id, is_there in zip(item_ids, there, strict=True) if is_there],
            )
            parts[name] = abs(slopes[name]) * spread
        sharing = {o.name: len(front.of_role(self._objectives, o.role)) for o in self._objectives}
        return items_to_settle(pooled_deviation(parts, sharing), difference)

    @property
    def _objectives(self) -> Sequence[ObjectiveInfo]:
        return self.table.setting.objectives

    def _role(self, means: Means, role: Role) -> Floats:
        return front.role_scores(means, self._objectives, self.yardsticks, role)

    def _role_errors(self, role: Role) -> Floats:
        """Covariance of the errors of role scores in points, [points, points]."""
        weight = float(role == "target")
        slopes = front.utility_slopes(self._objectives, self.yardsticks, weight)
        completed = self.table.completed
        parts = [slope**2 * completed[name].covariance for name, slope in slopes.items() if slope]
        return sum(parts, start=np.zeros((len(self.table.points),) * 2))

    def _utility(self, means: Means) -> Floats:
        return front.utility(means, self._objectives, self.yardsticks, self.weight)


def axes_of(table: ScoreTable) -> dict[Role, Axis]:
    """How each role's numbers read."""
    return {role: front.role_axis(table.setting.objectives, role) for role in ROLES}


def read(
    table: ScoreTable, final: Point, weight: float, seed: int, num_resamples: int = NUM_RESAMPLES
) -> WeightedScores:
    """A table of selection items under a weight, with the yardsticks it gives."""
    ends = table.column(Point.base()), table.column(final)
    yardsticks = front.make_yardsticks(table.setting.objectives, table.means, *ends)
    return WeightedScores(table, yardsticks, weight, seed, num_resamples)
