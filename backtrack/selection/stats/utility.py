"""Turn mean scores into role scores, points and utility. Pure numpy.

MEANS map an objective's name to an array whose last dimension is the points; a leading dimension
of bootstrap samples is allowed, and every function handles both.

Values are never negated: an objective carries its direction, and its yardstick converts its score
to POINTS, of which more is always better.
    all objectives are fractions   a point is a hundredth, counted from the worse end
    any other unit among them      every objective is ranged: 0 is the worse of base and final
                                   checkpoint, 100 the best score among the candidates
A role's score is in percent if all its objectives are fractions, in their unit if they share one,
else in points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backtrack.records import Axis
from backtrack.records.selection import Yardstick

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from backtrack.records import Direction, ObjectiveInfo, Role

    Floats = NDArray[np.float64]
    Means = Mapping[str, Floats]


FRACTION = "fraction"
PERCENT = "%"
POINTS = "points"


def of_role(objectives: Sequence[ObjectiveInfo], role: Role) -> list[ObjectiveInfo]:
    """List the role's objectives, in their order."""
    return [objective for objective in objectives if objective.role == role]


def role_shares(objectives: Sequence[ObjectiveInfo], role: Role) -> dict[str, float]:
    """Return each objective's share of its role's mean; shares sum to 1."""
    members = of_role(objectives, role)
    total = sum(objective.weight for objective in members)
    return {objective.name: objective.weight / total for objective in members}


def role_axis(objectives: Sequence[ObjectiveInfo], role: Role) -> Axis:
    """Return unit and direction of the role's score."""
    axes = {(objective.unit, objective.direction) for objective in of_role(objectives, role)}
    if len(axes) > 1:
        return Axis(unit=POINTS, direction="maximize")
    ((unit, direction),) = axes
    return Axis(unit=PERCENT if unit == FRACTION else unit, direction=direction)


def make_yardsticks(
    objectives: Sequence[ObjectiveInfo], means: Means, base: int, final: int
) -> dict[str, Yardstick]:
    """Make the yardstick of each objective.

    Args:
        objectives: All objectives: if one of them is no fraction, all are ranged.
        means: Mean scores of the candidates by objective, [points].
        base: Column of the base.
        final: Column of the final checkpoint.

    Returns:
        Yardsticks by objective's name. An empty range has `zero == hundred`: every score is then
        100 points.
    """
    if all(objective.unit == FRACTION for objective in objectives):
        return {objective.name: _whole_fraction(objective.direction) for objective in objectives}
    return {
        objective.name: _range(objective.direction, means[objective.name], base, final)
        for objective in objectives
    }


def _whole_fraction(direction: Direction) -> Yardstick:
    if direction == "maximize":
        return Yardstick(zero=0.0, hundred=1.0)
    return Yardstick(zero=1.0, hundred=0.0)


def _range(direction: Direction, scores: Floats, base: int, final: int) -> Yardstick:
    ends = scores[[base, final]]
    if direction == "maximize":
        return Yardstick(zero=float(ends.min()), hundred=float(scores.max()))
    return Yardstick(zero=float(ends.max()), hundred=float(scores.min()))


def is_degenerate(yardstick: Yardstick) -> bool:
    """Whether the range is empty: no candidate is better than the worse of base and final."""
    return yardstick.hundred == yardstick.zero


def to_points(scores: Floats, yardstick: Yardstick) -> Floats:
    """Convert an objective's scores to points; all are 100 on a yardstick with an empty range."""
    if is_degenerate(yardstick):
        return np.full_like(scores, 100.0)
    return 100 * (scores - yardstick.zero) / (yardstick.hundred - yardstick.zero)


def role_points(
    means: Means,
    objectives: Sequence[ObjectiveInfo],
    yardsticks: Mapping[str, Yardstick],
    role: Role,
) -> Floats:
    """Compute the role's weighted mean in points."""
    shares = role_shares(objectives, role)
    parts = [share * to_points(means[name], yardsticks[name]) for name, share in shares.items()]
    return sum(parts[1:], parts[0])


def role_scores(
    means: Means,
    objectives: Sequence[ObjectiveInfo],
    yardsticks: Mapping[str, Yardstick],
    role: Role,
) -> Floats:
    """Compute the role's weighted mean in the unit of its axis."""
    unit = role_axis(objectives, role).unit
    if unit == POINTS:
        return role_points(means, objectives, yardsticks, role)
    scale = 100.0 if unit == PERCENT else 1.0
    shares = role_shares(objectives, role)
    parts = [scale * share * means[name] for name, share in shares.items()]
    return sum(parts[1:], parts[0])


def utility(
    means: Means,
    objectives: Sequence[ObjectiveInfo],
    yardsticks: Mapping[str, Yardstick],
    weight: float,
) -> Floats:
    """Compute `weight * target + (1 - weight) * general`, in points."""
    target = role_points(means, objectives, yardsticks, "target")
    general = role_points(means, objectives, yardsticks, "general")
    return weight * target + (1 - weight) * general


def utility_slopes(
    objectives: Sequence[ObjectiveInfo], yardsticks: Mapping[str, Yardstick], weight: float
) -> dict[str, float]:
    """Compute the change of utility, in points, per unit of each objective's score."""
    slopes: dict[str, float] = {}
    role_weights: dict[Role, float] = {"target": weight, "general": 1 - weight}
    for role, role_weight in role_weights.items():
        for name, share in role_shares(objectives, role).items():
            extent = yardsticks[name].hundred - yardsticks[name].zero
            slopes[name] = 100 * role_weight * share / extent if extent else 0.0
    return slopes
