"""Turn scores into points on an absolute scale, role scores and utility. Pure numpy.

Values are never negated: an objective carries its direction, and its yardstick converts the score
of each item to POINTS, of which more is better. No point depends on what else was measured.
    fraction       a point is a hundredth, counted from the worse end
    nats a token   100 times the probability of a token, exp(-score)
    bits a byte    100 times the probability of a byte, 2^-score
    ranged         0 at the worst and 100 at the best score of the objective's `range`
A role's score is the weighted mean of its objectives' points. Where all of them are shares of what
is right, it is called percent.

MEANS map an objective's name to an array of points whose last dimension is the points of the path;
a leading dimension of bootstrap samples is allowed, and every function handles both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from backtrack.errors import UsageError
from backtrack.recipe.objectives import needs_range
from backtrack.records import BITS, FRACTION, NATS, ROLES, Axis
from backtrack.records.selection import Yardstick

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from backtrack.records import ObjectiveInfo, Role

    Floats = NDArray[np.float64]
    Means = Mapping[str, Floats]


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
    """Return the unit of the role's score; more is always better."""
    are_percent = all(
        o.unit == FRACTION and o.direction == "maximize" and o.range is None
        for o in of_role(objectives, role)
    )
    return Axis(unit=PERCENT if are_percent else POINTS, direction="maximize")


def make_yardstick(objective: ObjectiveInfo) -> Yardstick:
    """Make the yardstick of an objective.

    Raises:
        UsageError: Its unit has no scale, and it has no range.
    """
    if objective.range is not None:
        worst, best = objective.range
        return Yardstick(zero=worst, hundred=best)
    if objective.unit == FRACTION:
        is_more = objective.direction == "maximize"
        return Yardstick(zero=1.0 - is_more, hundred=float(is_more))
    if objective.unit in (NATS, BITS) and objective.direction == "minimize":
        scale: Literal["nats", "bits"] = "nats" if objective.unit == NATS else "bits"
        return Yardstick(scale=scale, zero=None, hundred=0.0)
    raise UsageError(f"objective {objective.name!r}: {needs_range(objective.unit)}.")


def to_points(scores: Floats, yardstick: Yardstick) -> Floats:
    """Convert the scores of items to points."""
    if yardstick.zero is None:
        probability = np.exp if yardstick.scale == "nats" else np.exp2
        return np.asarray(100 * probability(-scores))
    return 100 * (scores - yardstick.zero) / (yardstick.hundred - yardstick.zero)


def highest_score(objective: ObjectiveInfo) -> float | None:
    """Return the highest score an item can have, if scores lie between 0 and it."""
    return 1.0 if objective.unit == FRACTION else None


def highest_points(objective: ObjectiveInfo) -> float | None:
    """Return the most points an item can have, if points lie between 0 and it; a range may not."""
    return 100.0 if objective.range is None else None


def within(unit: str, values: Floats) -> Floats:
    """Clip values to the ends of their unit, which estimates and smoothed scores may pass."""
    ends = {FRACTION: (0.0, 1.0), PERCENT: (0.0, 100.0)}.get(unit)
    return np.clip(values, *ends) if ends else values


def role_points(means: Means, objectives: Sequence[ObjectiveInfo], role: Role) -> Floats:
    """Compute the role's weighted mean, in points."""
    parts = [share * means[name] for name, share in role_shares(objectives, role).items()]
    return sum(parts[1:], parts[0])


def utility(means: Means, objectives: Sequence[ObjectiveInfo], weight: float) -> Floats:
    """Compute `weight * target + (1 - weight) * general`, in points."""
    target, general = (role_points(means, objectives, role) for role in ROLES)
    return weight * target + (1 - weight) * general


def utility_shares(objectives: Sequence[ObjectiveInfo], weight: float) -> dict[str, float]:
    """Compute each objective's share of the utility; shares sum to 1."""
    weights: dict[Role, float] = {"target": weight, "general": 1 - weight}
    return {
        name: role_weight * share
        for role, role_weight in weights.items()
        for name, share in role_shares(objectives, role).items()
    }
