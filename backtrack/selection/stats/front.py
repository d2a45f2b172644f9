"""The Pareto front of both roles, its hypervolume and its knee. Pure numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]


def pareto_front(target: Floats, general: Floats) -> Flags:
    """Whether no other point is at least as good on both roles and better on one, [points].

    Args:
        target: Target scores in points, [points].
        general: General scores in points, [points].
    """
    is_ahead = _ahead(target) | _ahead(general)
    dominates = is_ahead & ~is_ahead.T
    return np.asarray(~dominates.any(axis=0))


def _ahead(scores: Floats) -> Flags:
    """Whether the row's point is better than the column's, [points, points]."""
    return np.asarray(scores[:, None] > scores[None, :])


def hypervolume(target: Floats, general: Floats, reference: tuple[float, float]) -> float:
    """Compute the area dominated beyond a reference corner; on both roles higher is better.

    Args:
        target: Target scores in points, [points].
        general: General scores in points, [points].
        reference: Target and general score of the corner.
    """
    area, reached = 0.0, reference[1]
    for i in np.lexsort((general, target))[::-1]:
        if target[i] > reference[0] and general[i] > reached:
            area += (float(target[i]) - reference[0]) * (float(general[i]) - reached)
            reached = float(general[i])
    return area


def knee_weight(target: Floats, general: Floats) -> float:
    """Compute the weight at which both ends of a front have the same utility.

    The point of highest utility at this weight is the knee: the front's farthest point from the
    chord between its ends (Das 1999). The weight is 0.5 if the front has no extent on a role.

    Args:
        target: Target scores of the front's points, in points.
        general: General scores of these, in points.
    """
    extents = [float(np.ptp(scores)) for scores in (target, general)]
    return extents[1] / sum(extents) if min(extents) > 0 else 0.5
