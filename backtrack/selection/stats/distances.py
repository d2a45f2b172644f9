"""Distances between points, for models that are smooth over points. Pure numpy.

A point's coordinates are its STRENGTHS: alpha times the profile's multiplier for attention and MLP
of early, middle and late blocks. Profiles with nearly the same effect are therefore close, and the
base is the origin of all. The multipliers of `safe`, `level` and `min` depend on the model: their
strengths are taken as uniform, and the profiles as not comparable to any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backtrack.path.profiles import BY_STRENGTH, parse_known

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

_DEPTHS = (1 / 6, 1 / 2, 5 / 6)


@dataclass(frozen=True)
class PointDistances:
    """Pairwise distances of points, each array [points, points].

    Attributes:
        strength: Root mean square difference of strengths; between two alphas under the uniform
            profile it is their difference.
        log_steps: Absolute difference of log2 of the steps; the base counts as the last step.
        is_other_step: Whether the steps differ.
        is_other_profile: Whether the profiles' strengths cannot be compared.
    """

    strength: Floats
    log_steps: Floats
    is_other_step: Flags
    is_other_profile: Flags


def point_distances(points: Sequence[Point]) -> PointDistances:
    """Compute the pairwise distances of points."""
    strengths = np.array(
        [[point.alpha * multiplier for multiplier in _multipliers(point)] for point in points]
    )
    squares = (strengths[:, None] - strengths[None, :]) ** 2
    last = max(1, *(point.step for point in points))
    steps = np.array([last if point.is_base else point.step for point in points])
    log_steps = np.log2(steps)
    groups = np.array([_comparable_group(point) for point in points])
    return PointDistances(
        strength=np.sqrt(squares.mean(axis=2)),
        log_steps=np.abs(log_steps[:, None] - log_steps),
        is_other_step=steps[:, None] != steps,
        is_other_profile=groups[:, None] != groups,
    )


def _comparable_group(point: Point) -> str:
    """Name the group of profiles with comparable strengths; the base belongs to the common one."""
    profile = parse_known(point.profile)
    is_comparable = profile is not None and profile.kind not in BY_STRENGTH
    return "" if point.is_base or is_comparable else point.profile


def _multipliers(point: Point) -> tuple[float, ...]:
    """List the multipliers of attention in early, middle and late blocks, then of their MLPs."""
    profile = parse_known(point.profile)
    match profile and profile.kind, profile.values if profile else ():
        case "depth", (first, last):
            return 2 * tuple(first + depth * (last - first) for depth in _DEPTHS)
        case "blocks", values:
            return 2 * values
        case "modules", (attention, mlp):
            return (attention,) * 3 + (mlp,) * 3
        case _:
            return (1.0,) * 6
