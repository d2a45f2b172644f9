"""Which point is measured next, on which part of the items. Pure numpy.

Points earn the selection items part by part; the parts are nested, the same at every point. A
UNIT of work is one point and the next part it lacks:

1. Every anchor, base and final checkpoint before all, then every point of the sampler, gets the
   first part.
2. A point is DROPPED once it is surely worse than another on both roles: the paired bootstrap
   interval of the difference lies above zero on each, one-sided, at the stated level divided by
   the number of looks a point is given. What it was measured on still counts for its curve. Base
   and final checkpoint are never dropped.
3. The others get part after part, in the order of their PROMISE: how often a point is the highest
   when utilities are drawn as they may be by the smoothing over all points (Thompson 1933), so
   that few items at a point, or none near it, count as not knowing; summed over weights.

With a budget, step 1 takes at most `EXPLORED` of it, and step 3 goes on until it is spent.
Without one it ends when every point that stayed in the race has all items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backtrack.records import ROLES
from backtrack.selection.stats.bootstrap import chances_best

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point
    from backtrack.selection.stats.scores import RoleScores
    from backtrack.selection.stats.smoothed import SmoothedScores

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

EXPLORED = 0.4
"""Share of a budget that goes to first looks at new points."""
NUM_RESAMPLES = 500
WEIGHTS = (0.2, 0.35, 0.5, 0.65, 0.8)


@dataclass(frozen=True)
class Unit:
    """One point and one part of the items.

    Attributes:
        point: Where.
        part: Which part, from 0.
        origin: Who asked: `anchor` or `sampler`.
    """

    point: Point
    rung: int
    origin: str

    def __str__(self) -> str:
        return f"{self.point}, rung {self.rung}"


def dropped(weighted: RoleScores, level: float) -> Flags:
    """Points that are surely worse than another on both roles, [points].

    Args:
        weighted: The selection items.
        level: How sure, at one look.
    """
    tail = 1 - level
    is_partial = weighted.table.shares < 1
    is_worse = np.ones((len(is_partial), len(is_partial)), dtype=bool)
    for role in ROLES:
        samples = weighted.role_point_samples(role)
        for i in np.flatnonzero(is_partial):
            low = np.quantile(samples - samples[:, [i]], tail, axis=0)
            is_worse[i] &= low > 0
    return np.asarray(is_worse.any(axis=1) & is_partial)


def promise(weighted: RoleScores, weights: Sequence[float] = WEIGHTS) -> Floats:
    """How often each point is the highest of the drawn ones, summed over weights, [points]."""
    total = np.zeros(len(weighted.table.points))
    for weight in weights:
        total += chances_best(_draws(weighted.smoothed.at(weight), weighted.seed))
    return total


def _draws(smoothed_scores: SmoothedScores, seed: int) -> Floats:
    """Utilities as they may be by what is fitted, [draws, points]."""
    rng = np.random.default_rng([seed, len(smoothed_scores.roles.points)])
    roles = np.empty_like(smoothed_scores.roles.samples)
    means = smoothed_scores.roles.smoothed
    for drawn, mean, smoothing in zip(roles, means, smoothed_scores.roles.smoothers, strict=True):
        root = np.linalg.cholesky(smoothing.covariance + 1e-6 * np.eye(len(mean)))
        drawn[:] = mean + rng.standard_normal(drawn.shape) @ root.T
    return smoothed_scores.weigh(roles)


def next_deep(
    weighted: RoleScores,
    rungs_done: Sequence[int],
    is_open: Sequence[bool],
    taken: Collection[Point],
    level: float,
    ends: Collection[Point],
) -> Unit | None:
    """The most promising point that is not dropped and lacks items; none where there is none.

    Args:
        weighted: The selection items.
        rungs_done: How many rungs each point has, [points].
        is_open: Whether a point lacks a part that can be afforded, [points].
        taken: Points under way elsewhere.
        level: See `dropped`.
        ends: Base and final checkpoint.
    """
    table = weighted.table
    is_out = dropped(weighted, level)
    open_ones = [
        i
        for i, point in enumerate(table.points)
        if is_open[i] and (not is_out[i] or point in ends) and point not in taken
    ]
    if not open_ones:
        return None
    rank = promise(weighted) if len(open_ones) > 1 else np.zeros(len(table.points))
    best = max(open_ones, key=lambda i: (rank[i], -i))
    return Unit(table.points[best], rungs_done[best], table.origins[best])


def next_first(
    points: Iterable[Point], known: Collection[Point], taken: Collection[Point]
) -> Unit | None:
    """The first of the anchors that nobody has measured or measures now."""
    for point in points:
        if point not in known and point not in taken:
            return Unit(point, 0, "anchor")
    return None
