"""Scores of a table by role, with bootstrap samples, and their utility under a weight. Pure.

Role scores and utility are in points: each item's score is converted first, see `utility`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

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
    bounded_scale,
    objective_bounds,
    require_known,
    role_bounds,
)
from backtrack.selection.stats.gaussian_process import fit_smoother
from backtrack.selection.stats.intervals import (
    combine,
    percentile_interval,
    rate_interval,
    student_quantile,
)
from backtrack.selection.stats.smoothed import SmoothedRoles
from backtrack.selection.stats.utility import (
    highest_points,
    highest_score,
    of_role,
    role_axis,
    role_points,
    role_shares,
    to_points,
    utility,
    utility_shares,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from backtrack.records import Interval, ObjectiveInfo, Role
    from backtrack.records.selection import Constraints
    from backtrack.selection.stats.bounds import Bound
    from backtrack.selection.stats.estimates import ScoreEstimates
    from backtrack.selection.stats.table import ScoreTable

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RoleScores:
    """Scores of a table by role: all that does not depend on the weight.

    Attributes:
        table: The scores.
        seed: Seed of the bootstrap.
        num_resamples: Number of bootstrap samples.
    """

    table: ScoreTable
    seed: int
    num_resamples: int = NUM_RESAMPLES

    def at(self, weight: float) -> WeightedScores:
        """Weigh the scores; samples and smoothers are shared by all weights."""
        return WeightedScores(self, weight)

    @cached_property
    def samples(self) -> dict[str, Floats]:
        """Bootstrap samples of the mean scores by objective's name, [resamples, points]."""
        return self._resampled(self.table.estimates)

    @cached_property
    def point_samples(self) -> dict[str, Floats]:
        """Bootstrap samples of the mean points by objective's name, [resamples, points]."""
        return self._resampled(self.table.in_points)

    @cached_property
    def point_means(self) -> dict[str, Floats]:
        """Mean points over all items by objective's name, [points]."""
        return {name: estimates.means for name, estimates in self.table.in_points.items()}

    @cached_property
    def smoothed(self) -> SmoothedRoles:
        """Role scores in points, smoothed over the points."""
        return SmoothedRoles(
            points=self.table.points,
            distances=self.table.distances,
            shares=self.table.shares,
            scores=np.stack([self.role(role) for role in ROLES]),
            samples=np.stack([self.role_samples(role) for role in ROLES]),
            errors=np.stack([self._role_errors(role) for role in ROLES]),
        )

    def role(self, role: Role) -> Floats:
        """Role scores, in points, [points]."""
        return role_points(self.point_means, self.objectives, role)

    def role_samples(self, role: Role) -> Floats:
        """Bootstrap samples of `role`, [resamples, points]."""
        return role_points(self.point_samples, self.objectives, role)

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
        in_points, means = self.table.in_points[name], self.table.means[name]
        matrix = fit_smoother(self.table.points, in_points.means, in_points.covariance).matrix
        scale = bounded_scale(objective)
        return BoundedScore(
            scale * (matrix @ means),
            scale * (self.samples[name] @ matrix.T),
            len(self.table.setting.item_ids[name]),
        )

    def interval(self, estimate: float, column: int, shares: Mapping[str, float]) -> Interval:
        """Make the interval of a point's weighted mean of points.

        Args:
            estimate: The mean.
            column: Column of the point.
            shares: Share of each objective in the mean, by name.
        """
        parts: list[tuple[float, Interval]] = []
        for o in self.objectives:
            if share := shares.get(o.name, 0.0):
                mean, samples = self.point_means[o.name], self.point_samples[o.name]
                top = highest_points(o)
                parts.append((share, self._interval(o.name, column, mean, samples, top)))
        return combine(estimate, parts)

    def own_intervals(self, column: int) -> dict[str, Interval]:
        """Make the interval of a point's score by objective, in the objective's unit."""
        means = self.table.means
        return {
            name: self._interval(name, column, means[name], samples, highest_score(objective))
            for objective, (name, samples) in zip(
                self.objectives, self.samples.items(), strict=True
            )
        }

    def _interval(
        self, name: str, column: int, means: Floats, samples: Floats, top: float | None
    ) -> Interval:
        is_measured = np.isfinite(self.table.scores[name][column])
        clusters = np.array(self.table.setting.item_clusters[name])[is_measured]
        num_free = max(len(set(clusters.tolist())) - 1, 1)
        mean, own = float(means[column]), samples[:, column]
        if top is None:
            return percentile_interval(mean, own, student_quantile(num_free))
        rate = rate_interval(mean / top, own / top, len(clusters), num_free)
        return combine(mean, [(top, rate)])

    @property
    def objectives(self) -> Sequence[ObjectiveInfo]:
        return self.table.setting.objectives

    def _role_errors(self, role: Role) -> Floats:
        """Covariance of the errors of role scores, in squared points, [points, points]."""
        shares, estimates = role_shares(self.objectives, role), self.table.in_points
        terms = [share**2 * estimates[name].covariance for name, share in shares.items()]
        return sum(terms[1:], terms[0])

    def _resampled(self, estimates: Mapping[str, ScoreEstimates]) -> dict[str, Floats]:
        """Bootstrap samples of estimates; an objective's items are drawn alike at each call."""
        setting = self.table.setting
        samples: dict[str, Floats] = {}
        for name, of_objective in estimates.items():
            stream = f"{setting.split}/{name}"
            clusters = setting.item_clusters[name]
            weights = item_weights(clusters, self.seed, stream, self.num_resamples)
            samples[name] = of_objective.resampled_means(weights)
        return samples


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
        return utility(scores.point_means, scores.objectives, self.weight)

    @cached_property
    def utility_samples(self) -> Floats:
        """Bootstrap samples of `utilities`, [resamples, points]."""
        scores = self.scores
        return utility(scores.point_samples, scores.objectives, self.weight)

    def items_to_settle(self, column: int, other: int, difference: float) -> int | None:
        """Compute the items per role needed to detect a utility difference of two points."""
        scores = self.scores
        shares, table = utility_shares(scores.objectives, self.weight), scores.table
        deviations: dict[str, float] = {}
        for name, matrix in table.scores.items():
            chosen, compared = to_points(matrix[[column, other]], table.yardsticks[name])
            gaps = chosen - compared
            clusters = np.array(table.setting.item_clusters[name])
            is_shared = np.isfinite(gaps)
            spread = deviation(gaps[is_shared], clusters[is_shared].tolist())
            deviations[name] = shares[name] * spread
        num_sharing = {o.name: len(of_role(scores.objectives, o.role)) for o in scores.objectives}
        return items_to_settle(pooled_deviation(deviations, num_sharing), difference)


def axes_of(table: ScoreTable) -> dict[Role, Axis]:
    """Return unit and direction of each role's scores."""
    return {role: role_axis(table.setting.objectives, role) for role in ROLES}
