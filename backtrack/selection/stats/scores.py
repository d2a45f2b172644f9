"""Scores of a table by role, with bootstrap samples, and their utility under a weight. Pure.

Yardsticks are made once, from the selection items, and used for the report items too; the
bootstrap holds them fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from backtrack.point import Point
from backtrack.records import ROLES, Axis
from backtrack.selection.stats.bootstrap import (
    NUM_RESAMPLES,
    deviation,
    item_weights,
    items_to_settle,
    pooled_deviation,
)
from backtrack.selection.stats.bounds import (
    BoundedScore,
    objective_bounds,
    require_known,
    role_bounds,
)
from backtrack.selection.stats.gaussian_process import fit_smoother
from backtrack.selection.stats.smoothed import SmoothedRoles
from backtrack.selection.stats.utility import (
    FRACTION,
    make_yardsticks,
    of_role,
    role_axis,
    role_points,
    role_scores,
    utility,
    utility_slopes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from backtrack.records import ObjectiveInfo, Role
    from backtrack.records.selection import Constraints, Yardstick
    from backtrack.selection.stats.bounds import Bound
    from backtrack.selection.stats.table import ScoreTable

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RoleScores:
    """Scores of a table by role: all that does not depend on the weight.

    Attributes:
        table: The scores.
        yardsticks: Yardstick of each objective by name.
        seed: Seed of the bootstrap.
        num_resamples: Number of bootstrap samples.
    """

    table: ScoreTable
    yardsticks: Mapping[str, Yardstick]
    seed: int
    num_resamples: int = NUM_RESAMPLES

    @classmethod
    def of_selection(
        cls, table: ScoreTable, final: Point, seed: int, num_resamples: int = NUM_RESAMPLES
    ) -> RoleScores:
        """Make the scores of a table of selection items, with the yardsticks it defines."""
        ends = table.column(Point.base()), table.column(final)
        yardsticks = make_yardsticks(table.setting.objectives, table.means, *ends)
        return cls(table, yardsticks, seed, num_resamples)

    def at(self, weight: float) -> WeightedScores:
        """Weigh the scores; samples and smoothers are shared by all weights."""
        return WeightedScores(self, weight)

    @cached_property
    def samples(self) -> dict[str, Floats]:
        """Bootstrap samples of the means by objective's name, [resamples, points]."""
        setting = self.table.setting
        samples: dict[str, Floats] = {}
        for name, estimates in self.table.estimates.items():
            stream = f"{setting.split}/{name}"
            item_ids = tuple(setting.item_ids[name])
            weights = item_weights(item_ids, self.seed, stream, self.num_resamples)
            samples[name] = estimates.resampled_means(weights)
        return samples

    @cached_property
    def smoothed(self) -> SmoothedRoles:
        """Role scores in points, smoothed over the points."""
        return SmoothedRoles(
            points=self.table.points,
            distances=self.table.distances,
            shares=self.table.shares,
            scores=np.stack([self.role_points(role) for role in ROLES]),
            samples=np.stack([self.role_point_samples(role) for role in ROLES]),
            errors=np.stack([self._role_errors(role) for role in ROLES]),
        )

    def role(self, role: Role) -> Floats:
        """Role scores in the unit of the axis, [points]."""
        return role_scores(self.table.means, self.objectives, self.yardsticks, role)

    def role_samples(self, role: Role) -> Floats:
        """Bootstrap samples of `role`, [resamples, points]."""
        return role_scores(self.samples, self.objectives, self.yardsticks, role)

    def role_points(self, role: Role) -> Floats:
        """Role scores in points, [points]."""
        return role_points(self.table.means, self.objectives, self.yardsticks, role)

    def role_point_samples(self, role: Role) -> Floats:
        """Bootstrap samples of `role_points`, [resamples, points]."""
        return role_points(self.samples, self.objectives, self.yardsticks, role)

    def bounds(self, base: int, final: int, constraints: Constraints) -> tuple[Bound, ...]:
        """Make the bounds that the constraints set on the smoothed scores.

        Raises:
            UsageError: A bound names an objective that does not exist.
        """
        require_known(constraints, self.objectives)
        by_role = {role: self.bounded_role(role) for role in ROLES}
        by_name = {name: self.bounded_objective(name) for name in constraints.objectives}
        return (
            *role_bounds(by_role, base, final, constraints),
            *objective_bounds(by_name, self.objectives, base, constraints),
        )

    def bounded_role(self, role: Role) -> BoundedScore:
        """Smoothed score of a role, in points, as bounds take it."""
        smoothed, row = self.smoothed, ROLES.index(role)
        names = [objective.name for objective in of_role(self.objectives, role)]
        num_items = sum(len(self.table.setting.item_ids[name]) for name in names)
        return BoundedScore(smoothed.smoothed[row], smoothed.smoothed_samples[row], num_items)

    def bounded_objective(self, name: str) -> BoundedScore:
        """Smoothed score of an objective, as bounds take it (see `objective_bounds`)."""
        (objective,) = [o for o in self.objectives if o.name == name]
        yardstick, estimates = self.yardsticks[name], self.table.estimates[name]
        slope = 100 / (yardstick.hundred - yardstick.zero or 1.0)
        in_points, errors = slope * estimates.means, slope**2 * estimates.covariance
        matrix = fit_smoother(self.table.points, in_points, errors).matrix
        scale = 100.0 if objective.unit == FRACTION else 1.0
        scale *= 1.0 if objective.direction == "maximize" else -1.0
        return BoundedScore(
            scale * (matrix @ estimates.means),
            scale * (self.samples[name] @ matrix.T),
            len(self.table.setting.item_ids[name]),
        )

    @property
    def objectives(self) -> Sequence[ObjectiveInfo]:
        return self.table.setting.objectives

    def _role_errors(self, role: Role) -> Floats:
        """Covariance of the errors of role scores, in squared points, [points, points]."""
        slopes = utility_slopes(self.objectives, self.yardsticks, float(role == "target"))
        estimates = self.table.estimates
        terms = [slope**2 * estimates[name].covariance for name, slope in slopes.items() if slope]
        return sum(terms, start=np.zeros((len(self.table.points),) * 2))


@dataclass(frozen=True)
class WeightedScores:
    """Scores of a table under a weight.

    Attributes:
        scores: The scores by role.
        weight: Weight of the target in the utility.
    """

    scores: RoleScores
    weight: float

    @cached_property
    def utilities(self) -> Floats:
        """Utility of the measured scores, in points, [points]."""
        scores = self.scores
        return utility(scores.table.means, scores.objectives, scores.yardsticks, self.weight)

    @cached_property
    def utility_samples(self) -> Floats:
        """Bootstrap samples of `utilities`, [resamples, points]."""
        scores = self.scores
        return utility(scores.samples, scores.objectives, scores.yardsticks, self.weight)

    def items_to_settle(self, column: int, other: int, difference: float) -> int | None:
        """Compute the items per role needed to detect a utility difference of two points."""
        scores = self.scores
        slopes = utility_slopes(scores.objectives, scores.yardsticks, self.weight)
        deviations: dict[str, float] = {}
        for name, matrix in scores.table.scores.items():
            gaps = matrix[column] - matrix[other]
            item_ids = np.array(scores.table.setting.item_ids[name])
            is_shared = np.isfinite(gaps)
            spread = deviation(gaps[is_shared], item_ids[is_shared].tolist())
            deviations[name] = abs(slopes[name]) * spread
        num_sharing = {o.name: len(of_role(scores.objectives, o.role)) for o in scores.objectives}
        return items_to_settle(pooled_deviation(deviations, num_sharing), difference)


def axes_of(table: ScoreTable) -> dict[Role, Axis]:
    """Return unit and direction of each role's scores."""
    return {role: role_axis(table.setting.objectives, role) for role in ROLES}
