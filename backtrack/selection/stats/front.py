"""From mean scores to role scores, points, utility, constraints and the front. Pure numpy.

Scores travel as MEANS: for each objective's name an array whose last dimension is the points; a
first dimension of bootstrap samples may stand before it, and every function serves both.

Values are never negated: an objective's direction says which way is better, and its yardstick
turns it into POINTS, of which more is always better.
    every objective a fraction   a point is a hundredth of it, counted from the worse end
    any other scale among them   all are ranged: 0 is the worse of base and final checkpoint, 100
                                 the best score seen among the candidates
A role's score reads in percent where its objectives are all fractions, in their unit where they
share one, else in points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backtrack.errors import UsageError
from backtrack.records import Axis
from backtrack.records.selection import Yardstick

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from backtrack.records import Direction, ObjectiveInfo, Role
    from backtrack.records.selection import Constraints

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]
    Means = Mapping[str, Floats]

FRACTION = "fraction"
PERCENT = "%"
POINTS = "points"

_TOLERANCE = 1e-9
"""In points: sums of the same scores in another order must not rule a point out."""


def of_role(objectives: Sequence[ObjectiveInfo], role: Role) -> list[ObjectiveInfo]:
    """The role's objectives, in their order."""
    return [objective for objective in objectives if objective.role == role]


def role_shares(objectives: Sequence[ObjectiveInfo], role: Role) -> dict[str, float]:
    """Share of each objective in its role's mean; they sum to 1."""
    members = of_role(objectives, role)
    total = sum(objective.weight for objective in members)
    return {objective.name: objective.weight / total for objective in members}


def role_axis(objectives: Sequence[ObjectiveInfo], role: Role) -> Axis:
    """How the role's score reads."""
    readings = {(objective.unit, objective.direction) for objective in of_role(objectives, role)}
    if len(readings) > 1:
        return Axis(unit=POINTS, direction="maximize")
    ((unit, direction),) = readings
    return Axis(unit=PERCENT if unit == FRACTION else unit, direction=direction)


def make_yardsticks(
    objectives: Sequence[ObjectiveInfo], means: Means, base: int, final: int
) -> dict[str, Yardstick]:
    """How each objective's score becomes points.

    Args:
        objectives: All of them: one that is no fraction has all of them ranged.
        means: Scores of the candidates, [points].
        base: Column of the base.
        final: Column of the final checkpoint.

    Returns:
        By name. Where the range is empty, zero and hundred are equal and every score is 100.
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
    """No candidate is better than the worse of base and final: there is no range to measure by."""
    return yardstick.hundred == yardstick.zero


def to_points(scores: Floats, yardstick: Yardstick) -> Floats:
    """Points of an objective's scores; 100 throughout on a yardstick without a range."""
    if is_degenerate(yardstick):
        return np.full_like(scores, 100.0)
    return 100 * (scores - yardstick.zero) / (yardstick.hundred - yardstick.zero)


def role_points(
    means: Means,
    objectives: Sequence[ObjectiveInfo],
    yardsticks: Mapping[str, Yardstick],
    role: Role,
) -> Floats:
    """The role's weighted mean in points."""
    shares = role_shares(objectives, role)
    parts = [share * to_points(means[name], yardsticks[name]) for name, share in shares.items()]
    return sum(parts[1:], parts[0])


def role_scores(
    means: Means,
    objectives: Sequence[ObjectiveInfo],
    yardsticks: Mapping[str, Yardstick],
    role: Role,
) -> Floats:
    """The role's weighted mean in the unit of its axis."""
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
    """`weight * target + (1 - weight) * general`, in points."""
    target = role_points(means, objectives, yardsticks, "target")
    general = role_points(means, objectives, yardsticks, "general")
    return weight * target + (1 - weight) * general


def utility_slopes(
    objectives: Sequence[ObjectiveInfo], yardsticks: Mapping[str, Yardstick], weight: float
) -> dict[str, float]:
    """Utility, in points, for one more unit of each objective's score."""
    slopes: dict[str, float] = {}
    role_weights: dict[Role, float] = {"target": weight, "general": 1 - weight}
    for role, role_weight in role_weights.items():
        for name, share in role_shares(objectives, role).items():
            height = yardsticks[name].hundred - yardsticks[name].zero
            slopes[name] = 100 * role_weight * share / height if height else 0.0
    return slopes


def pareto_front(target: Floats, general: Floats, axes: Mapping[Role, Axis]) -> Flags:
    """Which points no other is at least as good as on both roles and better than on one.

    Args:
        target: Role scores, [points].
        general: Likewise.
        axes: Which way each is better.
    """
    is_ahead = _ahead(target, axes["target"]) | _ahead(general, axes["general"])
    dominates = is_ahead & ~is_ahead.T
    return np.asarray(~dominates.any(axis=0))


def _ahead(scores: Floats, axis: Axis) -> Flags:
    """Whether the row's point is better than the column's: [points, points]."""
    better = np.greater if axis.direction == "maximize" else np.less
    return np.asarray(better(scores[:, None], scores[None, :]))


@dataclass(frozen=True)
class Bound:
    """A constraint, as something that must not fall below a least value.

    Attributes:
        name: The constraint's.
        asked: As the user put it.
        values: What is bounded, in points, [points].
        least: The lowest value allowed.
        scale: Turns a value into the terms of `asked`.
    """

    name: str
    asked: float
    values: Floats
    least: float
    scale: float = 1.0

    @property
    def is_met(self) -> Flags:
        return np.asarray(self.values >= self.least - _TOLERANCE)


def bounds(
    target: Floats, general: Floats, base: int, final: int, constraints: Constraints
) -> tuple[Bound, ...]:
    """The constraints that were asked for.

    Where the final checkpoint gains nothing on the target, `keep_gain` asks for the base's score.

    Args:
        target: Role points, [points].
        general: Likewise.
        base: Column of the base.
        final: Column of the final checkpoint.
        constraints: All in points.
    """
    found: list[Bound] = []
    if (drop := constraints.max_general_drop) is not None:
        found.append(Bound("max_general_drop", drop, general - general[base], -drop, -1.0))
    if (lowest := constraints.min_target) is not None:
        found.append(Bound("min_target", lowest, target, lowest))
    if (share := constraints.keep_gain) is not None:
        gain = gain_of(target, base, final)
        gains = target - target[base]
        found.append(Bound("keep_gain", share, gains, share * gain, 1 / gain if gain else 1.0))
    return tuple(found)


def objective_bounds(
    means: Means, objectives: Sequence[ObjectiveInfo], base: int, constraints: Constraints
) -> tuple[Bound, ...]:
    """The bounds on single objectives that were asked for.

    Args:
        means: Scores by objective, [points].
        objectives: All of them.
        base: Column of the base.
        constraints: Holds the bounds, by name.

    Raises:
        UsageError: A bound names no objective.
    """
    known = {objective.name: objective for objective in objectives}
    found: list[Bound] = []
    for name, asked in constraints.objectives.items():
        if name not in known:
            raise UsageError(
                f"a bound is set on {name!r}, which is no objective. There are: "
                f"{', '.join(known)}."
            )
        sign = 1.0 if known[name].direction == "maximize" else -1.0
        values = sign * means[name] * (100.0 if known[name].unit == FRACTION else 1.0)
        if asked.max_drop is not None:
            change = values - values[base]
            found.append(
                Bound(f"max_drop of {name}", asked.max_drop, change, -asked.max_drop, -1.0)
            )
        if asked.limit is not None:
            found.append(Bound(f"limit of {name}", asked.limit, values, sign * asked.limit, sign))
    return tuple(found)


def hypervolume(target: Floats, general: Floats, reference: tuple[float, float]) -> float:
    """Area that points dominate beyond a reference, both roles being better when higher.

    Args:
        target: In points, [points].
        general: Likewise.
        reference: Target and general of the corner it is counted from.
    """
    area, reached = 0.0, reference[1]
    for i in np.lexsort((general, target))[::-1]:
        if target[i] > reference[0] and general[i] > reached:
            area += (float(target[i]) - reference[0]) * (float(general[i]) - reached)
            reached = float(general[i])
    return area


def knee_weight(target: Floats, general: Floats, is_on_front: Flags) -> float:
    """The weight at which both ends of the front are worth the same.

    The point of highest utility at it is the knee: the front's farthest point from the chord
    between its ends (Das 1999). One half where the front has no length on a role.

    Args:
        target: In points, [points].
        general: Likewise.
        is_on_front: Likewise.
    """
    lengths = [float(np.ptp(values[is_on_front])) for values in (target, general)]
    return lengths[1] / sum(lengths) if min(lengths) > 0 else 0.5


def gain_of(target: Floats, base: int, final: int) -> float:
    """What the final checkpoint gains on the target, in points; 0 where it loses."""
    return max(float(target[final] - target[base]), 0.0)


def feasible(found: Sequence[Bound], num_points: int) -> Flags:
    """Which points meet every bound."""
    met = np.ones(num_points, dtype=bool)
    for bound in found:
        met &= bound.is_met
    return met
