"""The user's bounds as lower bounds on values of points. Pure numpy.

A point meets a bound where its value, less a one-sided margin, is high enough. The margin is the
value's standard error over bootstrap samples times the normal quantile of `bound_confidence`: a
drop from the base is paired by item, and the base's own has no error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np

from backtrack.errors import UsageError
from backtrack.records import FRACTION, ROLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from backtrack.records import ObjectiveInfo, Role
    from backtrack.records.selection import BaselineRow, Constraints, ReportRow

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]


_TOLERANCE = 1e-6
"""In points: summing the same scores in another order must not rule a point out."""


@dataclass(frozen=True)
class BoundedScore:
    """A score that bounds can be set on; more is better.

    Attributes:
        values: In points or the objective's unit, [points].
        samples: Paired bootstrap samples of the values, [resamples, points].
        num_items: Items it rests on.
    """

    values: Floats
    samples: Floats
    num_items: int

    def minus(self, column: int, share: float = 1.0) -> BoundedScore:
        """Subtract a share of a point's own value, paired by sample."""
        return BoundedScore(
            self.values - share * self.values[column],
            self.samples - share * self.samples[:, [column]],
            self.num_items,
        )

    def gain(self, base: int, final: int) -> float:
        """Return the final checkpoint's gain over the base; 0 if it loses."""
        return max(float(self.values[final] - self.values[base]), 0.0)

    @property
    def errors(self) -> Floats:
        """Standard errors of the values, [points]."""
        errors: Floats = self.samples.std(axis=0)
        return errors


@dataclass(frozen=True)
class Bound:
    """A constraint as a lower bound on a value of each point.

    Attributes:
        name: Name of the constraint.
        requested: The number the user gave.
        values: The bounded value of each point, in points or the objective's unit, [points].
        margins: What the value must exceed the lowest by, [points].
        lowest: The lowest value allowed.
        num_items: Items the values rest on.
        scale: Factor from a value to the user's number.
    """

    name: str
    requested: float
    values: Floats
    margins: Floats
    lowest: float
    num_items: int
    scale: float = 1.0

    @property
    def is_met(self) -> Flags:
        return np.asarray(self.values - self.margins >= self.lowest - _TOLERANCE)

    @property
    def is_reached(self) -> Flags:
        """Whether each point's value would do without a margin, [points]."""
        return np.asarray(self.values >= self.lowest - _TOLERANCE)

    @property
    def items_needed(self) -> Floats:
        """Items at which each value would do with its margin; infinite if no number can."""
        reserve = self.values - self.lowest
        with np.errstate(divide="ignore", invalid="ignore"):
            needed: Floats = self.num_items * (self.margins / reserve) ** 2
        return np.where(self.is_met, self.num_items, np.where(reserve > 0, needed, np.inf))


def margin_of(constraints: Constraints) -> float:
    """Return the one-sided margin of the bounds, in standard errors."""
    return NormalDist().inv_cdf(constraints.bound_confidence)


def role_bounds(
    scores: Mapping[Role, BoundedScore], base: int, final: int, constraints: Constraints
) -> tuple[Bound, ...]:
    """Make the bounds on role scores that the constraints contain.

    If the final checkpoint gains nothing on the target, `keep_gain` requires the base's score.

    Args:
        scores: Target and general, in points.
        base: Column of the base.
        final: Column of the final checkpoint.
        constraints: The user's constraints, in points.
    """
    margin, bounds = margin_of(constraints), list[Bound]()
    if (drop := constraints.max_general_drop) is not None:
        change = scores["general"].minus(base)
        bounds.append(_bound("max_general_drop", drop, change, -drop, margin, -1.0))
    if (lowest := constraints.min_target) is not None:
        bounds.append(_bound("min_target", lowest, scores["target"], lowest, margin))
    if (share := constraints.keep_gain) is not None:
        gains, gain = scores["target"].minus(base), scores["target"].gain(base, final)
        bound = _bound("keep_gain", share, gains, share * gain, margin, 1 / gain if gain else 1.0)
        kept = gains.minus(final, share) if gain else gains
        bounds.append(replace(bound, margins=margin * kept.errors))
    return tuple(bounds)


def _bound(
    name: str,
    requested: float,
    score: BoundedScore,
    lowest: float,
    margin: float,
    scale: float = 1.0,
) -> Bound:
    """Make a bound on a score, with a margin in standard errors."""
    margins = margin * score.errors
    return Bound(name, requested, score.values, margins, lowest, score.num_items, scale)


def objective_bounds(
    scores: Mapping[str, BoundedScore],
    objectives: Sequence[ObjectiveInfo],
    base: int,
    constraints: Constraints,
) -> tuple[Bound, ...]:
    """Make the bounds on single objectives that the constraints contain.

    Args:
        scores: Scores by objective's name, at least of those bounded: fractions in percent; a
            score of which less is better is negated.
        objectives: All objectives.
        base: Column of the base.
        constraints: The user's constraints, with bounds by objective's name.
    """
    margin, bounds = margin_of(constraints), list[Bound]()
    directions = {objective.name: objective.direction for objective in objectives}
    for name, requested in constraints.objectives.items():
        sign = 1.0 if directions[name] == "maximize" else -1.0
        if (drop := requested.max_drop) is not None:
            change = scores[name].minus(base)
            bounds.append(_bound(f"max_drop of {name}", drop, change, -drop, margin, -1.0))
        if (worst := requested.worst) is not None:
            score = scores[name]
            bounds.append(_bound(f"worst of {name}", worst, score, sign * worst, margin, sign))
    return tuple(bounds)


def require_known(constraints: Constraints, objectives: Sequence[ObjectiveInfo]) -> None:
    """Refuse a bound on an objective that does not exist.

    Raises:
        UsageError: Names it and the objectives that exist.
    """
    known = [objective.name for objective in objectives]
    for name in constraints.objectives:
        if name not in known:
            raise UsageError(
                f"a bound is set on {name!r}, which is no objective. Known objectives: "
                f"{', '.join(known)}."
            )


def missed(
    row: ReportRow | BaselineRow,
    ends: Mapping[Literal["base", "chosen", "final"], ReportRow],
    objectives: Sequence[ObjectiveInfo],
    constraints: Constraints,
) -> tuple[str, ...]:
    """Name the bounds that a model's scores on the report items do not reach, without a margin.

    Args:
        row: The model's scores.
        ends: Those of base and final checkpoint.
        objectives: All objectives.
        constraints: The user's constraints, with bounds by objective's name.
    """
    rows = ends["base"], ends["final"], row
    by_role = {role: _without_error(getattr(r, role).estimate for r in rows) for role in ROLES}
    by_name = {
        o.name: _without_error(bounded_scale(o) * r.scores[o.name] for r in rows)
        for o in objectives
        if o.name in constraints.objectives
    }
    bounds = (
        *role_bounds(by_role, 0, 1, constraints),
        *objective_bounds(by_name, objectives, 0, constraints),
    )
    return tuple(bound.name for bound in bounds if not bound.is_reached[-1])


def _without_error(values: Iterable[float]) -> BoundedScore:
    exact = np.array(list(values))
    return BoundedScore(exact, exact[None], num_items=0)


def bounded_scale(objective: ObjectiveInfo) -> float:
    """What an objective's score is multiplied by to be bounded (see `objective_bounds`)."""
    scale = 100.0 if objective.unit == FRACTION else 1.0
    return scale if objective.direction == "maximize" else -scale


def meets_all(bounds: Sequence[Bound], num_points: int) -> Flags:
    """Whether each point meets every bound, [points]."""
    met = np.ones(num_points, dtype=bool)
    for bound in bounds:
        met &= bound.is_met
    return met
