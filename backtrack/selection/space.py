"""Which points are measured: the anchors, and the space a sampler draws from.

The sampler works on a grid of hundredths of alpha, so that two proposals for one point coincide.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from backtrack.point import Point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.recipe import SearchSection

ALPHA_STEP = 0.01


def anchors(steps: Sequence[int], section: SearchSection) -> tuple[Point, ...]:
    """Points that are always measured: base, final checkpoint, its alphas, earlier checkpoints.

    Args:
        steps: The run's steps, ascending; at least one.
        section: Which alphas, as written there, and how many checkpoints.
    """
    final = steps[-1]
    points = [Point.base(), Point(step=final)]
    points += [Point(step=final, alpha=alpha) for alpha in section.alphas]
    points += [Point(step=step) for step in _evenly(steps, section.checkpoints)]
    return tuple(dict.fromkeys(points))


def _evenly(steps: Sequence[int], count: int) -> list[int]:
    """`count` of the steps before the last, with equal gaps between start, picks and last."""
    count = min(count, len(steps) - 1)
    return [steps[len(steps) * (i + 1) // (count + 1) - 1] for i in range(count)]


def highest_alpha(section: SearchSection) -> float:
    """The largest strength on the sampler's grid."""
    return max(
        round(math.floor(section.max_alpha / ALPHA_STEP + 1e-9) * ALPHA_STEP, 2), ALPHA_STEP
    )


def point_at(steps: Sequence[int], index: int, alpha: float) -> Point:
    """The point a sampler proposes; strength 0 of any step is the base."""
    return Point(step=steps[index], alpha=_on_grid(alpha)).canonical


def place_of(steps: Sequence[int], point: Point, highest: float) -> tuple[int, float] | None:
    """Index of the step and alpha on the grid nearest a point; none if it lies outside the space.

    The base is strength 0 of the last step.
    """
    if point.is_base:
        return len(steps) - 1, 0.0
    alpha = _on_grid(point.alpha)
    if point.step not in steps or point.profile != "uniform" or alpha > highest:
        return None
    return steps.index(point.step), alpha


def _on_grid(alpha: float) -> float:
    return round(round(alpha / ALPHA_STEP) * ALPHA_STEP, 2)
