"""Racing: which points are dropped, and which of the others gets its next rung. Pure numpy.

The selection items are split into rungs, the same at every point, as in successive halving. An
EVALUATION is one point and the next rung it lacks:

1. Every anchor, base and final checkpoint first, then every point of the sampler, gets rung 0.
   With a budget, these take turns (see `scheduler`).
2. A point is DROPPED once it is significantly worse than another point on both roles: on each, the
   one-sided paired bootstrap interval of the difference lies above zero, at the recipe's level
   divided by the number of rungs after which a point is tested (Bonferroni). Its measurements
   still count in the Gaussian process. Base and final checkpoint are never dropped.
3. The others get rung after rung. The point most likely to be the best comes first: its
   probability, summed over weights, is estimated by samples of the Gaussian process's posterior
   (Thompson sampling), so points with few items, or far from measured ones, stay uncertain.

With a budget, step 1 takes at most `EXPLORATION_SHARE` of it, and step 3 continues until it is
spent. Without one, step 3 ends when every point that was not dropped has all items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backtrack.records import ROLES
from backtrack.records.search import Evaluation
from backtrack.selection.stats.bootstrap import chances_best

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point
    from backtrack.selection.stats.scores import RoleScores
    from backtrack.selection.stats.smoothed import SmoothedRoles

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

EXPLORATION_SHARE = 0.4
"""Share of a budget that goes to the first rung of new points."""
NUM_RESAMPLES = 500
"""Bootstrap resamples of one decision."""
WEIGHTS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Weights of the target over which the probability of being the best is summed."""


def dropped(scores: RoleScores, level: float) -> Flags:
    """Points that are significantly worse than another one on both roles, [points].

    Args:
        scores: Scores of the selection items.
        level: Confidence level of one test.
    """
    tail = 1 - level
    is_partial = scores.table.shares < 1
    is_worse = np.ones((len(is_partial), len(is_partial)), dtype=bool)
    for role in ROLES:
        samples = scores.role_samples(role)
        for i in np.flatnonzero(is_partial):
            low = np.quantile(samples - samples[:, [i]], tail, axis=0)
            is_worse[i] &= low > 0
    return np.asarray(is_worse.any(axis=1) & is_partial)


def probability_best(scores: RoleScores, weights: Sequence[float] = WEIGHTS) -> Floats:
    """Probability of each point to have the highest utility, summed over weights, [points]."""
    return _chances_best(scores.smoothed, scores.seed, weights)


def _chances_best(roles: SmoothedRoles, seed: int, weights: Sequence[float]) -> Floats:
    samples = _posterior_samples(roles, seed)
    total = np.zeros(len(roles.points))
    for weight in weights:
        total += chances_best(roles.at(weight).weigh(samples))
    return total


def _posterior_samples(roles: SmoothedRoles, seed: int) -> Floats:
    """Samples of both roles from the Gaussian process's posterior, [roles, samples, points]."""
    rng = np.random.default_rng([seed, len(roles.points)])
    drawn: Floats = np.empty_like(roles.samples)
    for samples, mean, smoothing in zip(drawn, roles.smoothed, roles.smoothers, strict=True):
        root = np.linalg.cholesky(smoothing.covariance + 1e-6 * np.eye(len(mean)))
        samples[:] = mean + rng.standard_normal(samples.shape) @ root.T
    return drawn


def next_rung(
    scores: RoleScores,
    rungs_done: Sequence[int],
    is_open: Sequence[bool],
    running: Collection[Point],
    level: float,
    ends: Collection[Point],
) -> Evaluation | None:
    """The next rung of the point most likely to be the best; None if no point is left.

    Args:
        scores: Scores of the selection items.
        rungs_done: How many rungs each point has, [points].
        is_open: Whether a point lacks a rung that the budget allows, [points].
        running: Points being measured now.
        level: See `dropped`.
        ends: Base and final checkpoint.
    """
    table = scores.table
    is_out = dropped(scores, level)
    candidates = [
        i
        for i, point in enumerate(table.points)
        if is_open[i] and (not is_out[i] or point in ends) and point not in running
    ]
    if not candidates:
        return None
    # Ranking fits Gaussian processes; a single candidate needs none.
    rank = probability_best(scores) if len(candidates) > 1 else np.zeros(len(table.points))
    best = max(candidates, key=lambda i: (rank[i], -i))
    return Evaluation(table.points[best], rungs_done[best], table.origins[best])


def next_anchor(
    points: Iterable[Point], known: Collection[Point], running: Collection[Point]
) -> Evaluation | None:
    """Rung 0 of the first anchor that is neither measured nor being measured; None if all are."""
    for point in points:
        if point not in known and point not in running:
            return Evaluation(point, 0, "anchor")
    return None


def likeliest_first(scores: RoleScores, points: Sequence[Point]) -> list[Point]:
    """Sort points that are not measured: the one most likely to be the best of all first.

    Args:
        scores: Scores of the selection items at the measured points.
        points: The points; equally likely ones keep their order.
    """
    chances = _chances_best(scores.smoothed.with_unmeasured(points), scores.seed, WEIGHTS)
    unmeasured = chances[len(chances) - len(points) :]
    return [points[i] for i in np.argsort(-unmeasured, kind="stable")]
