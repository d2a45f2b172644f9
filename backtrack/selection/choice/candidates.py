"""Apply the rule to the selection items: the chosen point and all candidates. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backtrack.errors import SelectionError
from backtrack.point import Point
from backtrack.records import ROLES
from backtrack.records.selection import Candidate
from backtrack.selection.choice.rule import choose
from backtrack.selection.stats.bootstrap import interval, percentile_bounds
from backtrack.selection.stats.bounds import margin_of, meets_all
from backtrack.selection.stats.front import hypervolume, knee_weight
from backtrack.selection.stats.scores import axes_of
from backtrack.selection.stats.utility import within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backtrack.records import Interval
    from backtrack.records.selection import Constraints
    from backtrack.selection.choice.rule import Decision
    from backtrack.selection.stats.bounds import Bound
    from backtrack.selection.stats.scores import RoleScores, WeightedScores

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

_NO_AREA = 1e-6
"""In squared points: a smaller area is a rounding error."""


@dataclass(frozen=True)
class Outcome:
    """The choice on the selection items.

    Attributes:
        weighted: Scores of the selection items, at the weight of the choice.
        base: Column of the base.
        final: Column of the final checkpoint.
        bounds: The constraints as bounds on the smoothed scores.
        margin: Margin of the bounds, in standard errors.
        is_feasible: Whether each point meets every bound, [points].
        front: Columns of the front of the points that meet every bound.
        decision: Result of the rule.
        candidates: All points as records, in the order of the columns.
    """

    weighted: WeightedScores
    base: int
    final: int
    bounds: tuple[Bound, ...]
    margin: float
    is_feasible: Flags
    front: tuple[int, ...]
    decision: Decision
    candidates: tuple[Candidate, ...]

    @property
    def scores(self) -> RoleScores:
        return self.weighted.scores

    @property
    def chosen(self) -> Point:
        return self.scores.table.points[self.decision.chosen]

    @property
    def cautious(self) -> Point:
        return self.scores.table.points[self.decision.cautious]


def choose_point(
    scores: RoleScores,
    final: Point,
    weight: float | None,
    constraints: Constraints,
    *,
    is_cautious: bool = False,
) -> Outcome:
    """Choose among the points of a table.

    Args:
        scores: Scores of the selection items; base and final checkpoint are measured on all items.
        final: The final checkpoint.
        weight: Weight of the target in the utility; None for the weight of the knee.
        constraints: Bounds a point must meet.
        is_cautious: Choose by the cautious rule.

    Raises:
        SelectionError: No point meets the bounds.
    """
    points = scores.table.points
    base_column, final_column = scores.table.column(Point.base()), scores.table.column(final)
    bounds = scores.bounds(base_column, final_column, constraints)
    is_feasible = meets_all(bounds, len(points))
    if not (is_feasible & scores.smoothed.is_eligible).any():
        raise SelectionError(_out_of_reach(bounds, points, constraints.bound_confidence))
    front = scores.smoothed.front_of(is_feasible)
    if weight is None:
        weight = knee_weight(*scores.smoothed.smoothed[:, front])
    decision = choose(scores.smoothed.at(weight), is_feasible, is_cautious=is_cautious)
    weighted = scores.at(weight)
    return Outcome(
        weighted=weighted,
        base=base_column,
        final=final_column,
        bounds=bounds,
        margin=margin_of(constraints),
        is_feasible=is_feasible,
        front=tuple(map(int, np.flatnonzero(front))),
        decision=decision,
        candidates=_candidates(weighted, decision, is_feasible),
    )


def front_hypervolume(outcome: Outcome) -> Interval | None:
    """Compute the share of a box that the front of smoothed scores dominates.

    The box reaches from the worse of base and final checkpoint to the best score on each role. The
    points on the front are the same in every bootstrap sample; the box is the sample's own.
    """
    roles = outcome.scores.smoothed
    on_front = np.flatnonzero(roles.is_on_front)
    ends = [outcome.base, outcome.final]

    def box(scores: Floats) -> tuple[Floats, float]:
        corner = scores[:, ends].min(axis=1)
        extents = scores[:, on_front].max(axis=1) - corner
        return corner, float(np.prod(np.maximum(extents, 0)))

    if box(roles.smoothed)[1] <= _NO_AREA:
        return None

    def share(scores: Floats) -> float:
        corner, area = box(scores)
        target, general = scores[:, on_front]
        dominated = hypervolume(target, general, (corner[0], corner[1]))
        return dominated / area if area > _NO_AREA else 0.0

    samples = roles.smoothed_samples.swapaxes(0, 1)
    return interval(share(roles.smoothed), np.array([share(sample) for sample in samples]))


def _out_of_reach(bounds: Sequence[Bound], points: Sequence[Point], confidence: float) -> str:
    """Say how many points each bound rules out, and how near the others come to it."""
    lines = [
        f"none of the {len(points)} measured points is shown to meet every bound "
        f"(confidence {confidence:g})."
    ]
    for bound in bounds:
        ruled_out = int((~bound.is_met).sum())
        line = f"  {bound.name} {bound.requested:g} rules out {ruled_out}"
        meets_others = meets_all([other for other in bounds if other is not bound], len(points))
        if meets_others.any():
            nearest = max(np.flatnonzero(meets_others), key=lambda i: bound.values[i])
            reached = float(bound.values[nearest]) * bound.scale
            line += f"; of those that meet the rest, {points[nearest]} is nearest: {reached:.4g}"
        lines.append(line)
    advice = "Loosen one of them, lower --bound-confidence, or measure more points or items."
    return "\n".join([*lines, advice])


def _candidates(
    weighted: WeightedScores, decision: Decision, is_feasible: Flags
) -> tuple[Candidate, ...]:
    scores, table = weighted.scores, weighted.scores.table
    axes, roles = axes_of(table), scores.smoothed
    target, general = (within(axes[role].unit, scores.role(role)) for role in ROLES)
    pairs = tuple(zip(ROLES, roles.smoothed, roles.smoothed_samples, strict=True))
    smoothed = [within(axes[role].unit, means) for role, means, _ in pairs]
    bands = [percentile_bounds(within(axes[role].unit, samples)) for role, _, samples in pairs]
    means = {o.name: within(o.unit, table.means[o.name]) for o in scores.objectives}
    return tuple(
        Candidate(
            point=point,
            scores={name: float(values[i]) for name, values in means.items()},
            target=float(target[i]),
            general=float(general[i]),
            utility=float(weighted.utilities[i]),
            smoothed=float(decision.smoothed[i]),
            smoothed_target=float(smoothed[0][i]),
            smoothed_general=float(smoothed[1][i]),
            distance=float(table.distances[i]),
            origin=table.origins[i],
            is_on_front=bool(scores.smoothed.is_on_front[i]),
            is_feasible=bool(is_feasible[i]),
            is_tied=bool(decision.is_tied[i]),
            chance_best=float(decision.chances[i]),
            share=float(table.shares[i]),
            target_band=bands[0][i],
            general_band=bands[1][i],
        )
        for i, point in enumerate(table.points)
    )
