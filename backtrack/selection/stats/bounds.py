"""The user's constraints as lower bounds on values of points. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backtrack.errors import UsageError
from backtrack.selection.stats.utility import FRACTION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from backtrack.records import ObjectiveInfo
    from backtrack.records.selection import Constraints

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]


_TOLERANCE = 1e-9
"""In points: summing the same scores in another order must not rule a point out."""


@dataclass(frozen=True)
class Bound:
    """A constraint as a lower bound on a value of each point.

    Attributes:
        name: Name of the constraint.
        requested: The number the user gave.
        values: The bounded value of each point, in points or the objective's unit, [points].
        lowest: The lowest value allowed.
        scale: Factor from a value to the user's number.
    """

    name: str
    requested: float
    values: Floats
    lowest: float
    scale: float = 1.0

    @property
    def is_met(self) -> Flags:
        return np.asarray(self.values >= self.lowest - _TOLERANCE)


def role_bounds(
    target: Floats, general: Floats, base: int, final: int, constraints: Constraints
) -> tuple[Bound, ...]:
    """Make the bounds on role scores that the constraints contain.

    If the final checkpoint gains nothing on the target, `keep_gain` requires the base's score.

    Args:
        target: Target score in points, [points].
        general: General score in points, [points].
        base: Column of the base.
        final: Column of the final checkpoint.
        constraints: The user's constraints, in points.
    """
    bounds: list[Bound] = []
    if (drop := constraints.max_general_drop) is not None:
        bounds.append(Bound("max_general_drop", drop, general - general[base], -drop, -1.0))
    if (lowest := constraints.min_target) is not None:
        bounds.append(Bound("min_target", lowest, target, lowest))
    if (share := constraints.keep_gain) is not None:
        gain = target_gain(target, base, final)
        gains = target - target[base]
        bounds.append(Bound("keep_gain", share, gains, share * gain, 1 / gain if gain else 1.0))
    return tuple(bounds)


def objective_bounds(
    means: Mapping[str, Floats],
    objectives: Sequence[ObjectiveInfo],
    base: int,
    constraints: Constraints,
) -> tuple[Bound, ...]:
    """Make the bounds on single objectives that the constraints contain.

    Args:
        means: Mean scores by objective, [points].
        objectives: All objectives.
        base: Column of the base.
        constraints: The user's constraints, with bounds by objective's name.

    Raises:
        UsageError: A bound names an objective that does not exist.
    """
    known = {objective.name: objective for objective in objectives}
    bounds: list[Bound] = []
    for name, requested in constraints.objectives.items():
        if name not in known:
            raise UsageError(
                f"a bound is set on {name!r}, which is no objective. Known objectives: "
                f"{', '.join(known)}."
            )
        sign = 1.0 if known[name].direction == "maximize" else -1.0
        values = sign * means[name] * (100.0 if known[name].unit == FRACTION else 1.0)
        if (drop := requested.max_drop) is not None:
            change = values - values[base]
            bounds.append(Bound(f"max_drop of {name}", drop, change, -drop, -1.0))
        if (limit := requested.limit) is not None:
            bounds.append(Bound(f"limit of {name}", limit, values, sign * limit, sign))
    return tuple(bounds)


def target_gain(target: Floats, base: int, final: int) -> float:
    """Return the final checkpoint's gain on the target, in points; 0 if it loses."""
    return max(float(target[final] - target[base]), 0.0)


def meets_all(bounds: Sequence[Bound], num_points: int) -> Flags:
    """Whether each point meets every bound, [points]."""
    met = np.ones(num_points, dtype=bool)
    for bound in bounds:
        met &= bound.is_met
    return met
