"""From tables of scores to the records of a selection: candidates, report, differences, verdict.

Pure. The yardsticks are made once, from the selection items, and serve the report items too; the
bootstrap holds them fixed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import numpy as np

from backtrack.errors import SelectionError
from backtrack.point import Point
from backtrack.records import (
    ROLES,
    Axis,
    BaselineRow,
    Candidate,
    Difference,
    Interval,
    ReportRow,
    WeightRange,
)
from backtrack.selection import front
from backtrack.selection.choosing import Measured, choose
from backtrack.selection.statistics import (
    NUM_RESAMPLES,
    deviation,
    interval,
    item_weights,
    items_to_settle,
    pooled_deviation,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from backtrack.records import Baseline, Constraints, ObjectiveInfo, Role, Yardstick
    from backtrack.selection.choosing import Decision
    from backtrack.selection.measured import Table

    Floats = NDArray[np.float64]
    Means = Mapping[str, Floats]

_NO_BOX = 1e-6
"""Square points: less is rounding."""
Compared = Literal["base", "chosen", "final"]


@dataclass(frozen=True)
class Reading:
    """A table read under a weight: scores, their bootstrap samples, and what they come to.

    Attributes:
        table: The scores.
        yardsticks: How they become points.
        weight: Of the target.
        seed: Of the bootstrap.
        num_resamples: Likewise.
    """

    table: Table
    yardsticks: Mapping[str, Yardstick]
    weight: float
    seed: int
    num_resamples: int = NUM_RESAMPLES

    @cached_property
    def samples(self) -> dict[str, Floats]:
        """Resampled means by objective, [resamples, points]."""
        setting = self.table.setting
        return {
            name: completed.sampled(
                item_weights(
                    tuple(setting.item_ids[name]),
                    self.seed,
                    f"{setting.split}/{name}",
                    self.num_resamples,
                )
            )
            for name, completed in self.table.completed.items()
        }

    def at(self, weight: float) -> Reading:
        """The same under another weight; what was drawn is kept."""
        other = replace(self, weight=weight)
        other.__dict__["samples"] = self.samples
        other.__dict__["measured"] = self.measured.at(weight)
        return other

    @cached_property
    def measured(self) -> Measured:
        """What the rule of choosing looks at."""
        table = self.table
        roles = np.stack([self.role_points(role) for role in ROLES])
        samples = np.stack([self.role_point_samples(role) for role in ROLES])
        errors = np.stack([self._role_errors(role) for role in ROLES])
        return Measured(
            table.points, table.distances, table.shares, self.weight, roles, samples, errors
        )

    @cached_property
    def utilities(self) -> Floats:
        """Utility as measured, in points, [points]."""
        return self._utility(self.table.means)

    @cached_property
    def utility_samples(self) -> Floats:
        """Likewise, [resamples, points]."""
        return self._utility(self.samples)

    def role(self, role: Role) -> Floats:
        """Role scores in the unit of the axis, [points]."""
        return self._role(self.table.means, role)

    def role_samples(self, role: Role) -> Floats:
        """Likewise, [resamples, points]."""
        return self._role(self.samples, role)

    def role_points(self, role: Role) -> Floats:
        """Role scores in points, [points]."""
        return front.role_points(self.table.means, self._objectives, self.yardsticks, role)

    def role_point_samples(self, role: Role) -> Floats:
        """Likewise, [resamples, points]."""
        return front.role_points(self.samples, self._objectives, self.yardsticks, role)

    def bounds(self, base: int, final: int, constraints: Constraints) -> tuple[front.Bound, ...]:
        """The constraints on these items."""
        target, general = (self.role_points(role) for role in ROLES)
        return (
            *front.bounds(target, general, base, final, constraints),
            *front.objective_bounds(self.table.means, self._objectives, base, constraints),
        )

    def items_to_settle(self, column: int, other: int, difference: float) -> int | None:
        """Items a role needed to see a utility difference between two points."""
        slopes = front.utility_slopes(self._objectives, self.yardsticks, self.weight)
        parts: dict[str, float] = {}
        for name, scores in self.table.scores.items():
            item_ids = self.table.setting.item_ids[name]
            there = np.isfinite(scores[column] - scores[other])
            spread = deviation(
                (scores[column] - scores[other])[there],
                [item_id for item_id, is_there in zip(item_ids, there, strict=True) if is_there],
            )
            parts[name] = abs(slopes[name]) * spread
        sharing = {o.name: len(front.of_role(self._objectives, o.role)) for o in self._objectives}
        return items_to_settle(pooled_deviation(parts, sharing), difference)

    @property
    def _objectives(self) -> Sequence[ObjectiveInfo]:
        return self.table.setting.objectives

    def _role(self, means: Means, role: Role) -> Floats:
        return front.role_scores(means, self._objectives, self.yardsticks, role)

    def _role_errors(self, role: Role) -> Floats:
        """Covariance of the errors of role scores in points, [points, points]."""
        weight = float(role == "target")
        slopes = front.utility_slopes(self._objectives, self.yardsticks, weight)
        completed = self.table.completed
        parts = [slope**2 * completed[name].covariance for name, slope in slopes.items() if slope]
        return sum(parts, start=np.zeros((len(self.table.points),) * 2))

    def _utility(self, means: Means) -> Floats:
        return front.utility(means, self._objectives, self.yardsticks, self.weight)


@dataclass(frozen=True)
class Judgement:
    """What the selection items say.

    Attributes:
        reading: The selection items.
        base: Column of the base.
        final: Column of the final checkpoint.
        decision: What the rule made of them.
        candidates: The points, as records.
    """

    reading: Reading
    base: int
    final: int
    decision: Decision
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Point:
        return self.reading.table.points[self.decision.chosen]


def judge(
    table: Table, final: Point, weight: float, constraints: Constraints, seed: int
) -> Judgement:
    """Choose among the points of a table.

    Args:
        table: Scores on the selection items; holds base and final checkpoint, whole.
        final: The final checkpoint.
        weight: Of the target.
        constraints: Bounds a point must meet.
        seed: Of the bootstrap.

    Raises:
        SelectionError: No point meets the constraints.
    """
    reading = read(table, final, weight, seed)
    base_column, final_column = table.column(Point.base()), table.column(final)
    found = reading.bounds(base_column, final_column, constraints)
    is_feasible = front.feasible(found, len(table.points))
    if not (is_feasible & reading.measured.is_held).any():
        raise SelectionError(_out_of_reach(found, table.points))
    decision = choose(reading.measured, is_feasible)
    candidates = _candidates(reading, decision, is_feasible)
    return Judgement(reading, base_column, final_column, decision, candidates)


def read(
    table: Table, final: Point, weight: float, seed: int, num_resamples: int = NUM_RESAMPLES
) -> Reading:
    """A table of selection items under a weight, with the yardsticks it gives."""
    ends = table.column(Point.base()), table.column(final)
    yardsticks = front.make_yardsticks(table.setting.objectives, table.means, *ends)
    return Reading(table, yardsticks, weight, seed, num_resamples)


def knee(table: Table, final: Point, seed: int) -> float:
    """The weight at which the point of highest utility is the knee of the front."""
    measured = read(table, final, 0.5, seed).measured
    target, general = measured.smoothed_roles
    return front.knee_weight(target, general, measured.is_on_front)


def weight_ranges(judgement: Judgement, constraints: Constraints) -> tuple[WeightRange, ...]:
    """The chosen point at each hundredth of weight from 0 to 1, neighbours put together.

    Every tenth is looked at, and hundredths where the choice changes between two tenths.
    """
    reading = judgement.reading
    bounds = reading.bounds(judgement.base, judgement.final, constraints)
    is_feasible = front.feasible(bounds, len(reading.table.points))
    columns: dict[int, int] = {}

    def look(hundredth: int) -> int:
        if hundredth not in columns:
            weight = hundredth / 100
            columns[hundredth] = choose(reading.at(weight).measured, is_feasible).chosen
        return columns[hundredth]

    def fill(low: int, high: int) -> None:
        if high - low <= 10 and look(low) == look(high):
            columns.update(dict.fromkeys(range(low, high + 1), look(low)))
        elif high - low > 1:
            fill(low, (low + high) // 2)
            fill((low + high) // 2, high)

    for tenth in range(10):
        fill(10 * tenth, 10 * tenth + 10)
    return tuple(_ranges(reading, [look(hundredth) for hundredth in range(101)]))


def _ranges(reading: Reading, columns: Sequence[int]) -> Iterator[WeightRange]:
    """Runs of equal columns, the weight rising by a hundredth."""
    target, general = reading.role("target"), reading.role("general")
    for column, run in groupby(range(len(columns)), key=lambda i: columns[i]):
        hundredths = list(run)
        yield WeightRange(
            low=hundredths[0] / 100,
            high=hundredths[-1] / 100,
            point=reading.table.points[column],
            target=float(target[column]),
            general=float(general[column]),
        )


def front_hypervolume(judgement: Judgement) -> Interval | None:
    """Share of the box from the worse of base and final to the best seen that is dominated.

    On the fitted curves; the points on the front stay the same in every sample.
    """
    measured = judgement.reading.measured
    values, samples = measured.smoothed_roles, measured.smoothed_role_samples
    corner = values[:, [judgement.base, judgement.final]].min(axis=1)
    on_front = np.flatnonzero(measured.is_on_front)
    box = float(np.prod(values[:, on_front].max(axis=1) - corner))
    if box <= _NO_BOX:
        return None

    def share(roles: Floats) -> float:
        target, general = roles[:, on_front]
        return front.hypervolume(target, general, (corner[0], corner[1])) / box

    return interval(share(values), np.array([share(drawn) for drawn in samples.swapaxes(0, 1)]))


def _out_of_reach(found: Sequence[front.Bound], points: Sequence[Point]) -> str:
    """Which constraint rules out how many points, and how near the rest of them come."""
    lines = [f"none of the {len(points)} measured points meets every constraint."]
    for bound in found:
        ruled_out = int((~bound.is_met).sum())
        line = f"  {bound.name} {bound.asked:g} rules out {ruled_out}"
        others = front.feasible([other for other in found if other is not bound], len(points))
        if others.any():
            nearest = max(np.flatnonzero(others), key=lambda i: bound.values[i])
            reached = float(bound.values[nearest]) * bound.scale
            line += f"; of those that meet the rest, {points[nearest]} is nearest: {reached:.4g}"
        lines.append(line)
    return "\n".join([*lines, "Loosen one of them, or search more points."])


def _candidates(
    reading: Reading, decision: Decision, is_feasible: NDArray[np.bool_]
) -> tuple[Candidate, ...]:
    table = reading.table
    target, general = reading.role("target"), reading.role("general")
    on_front = reading.measured.is_on_front
    fitted = [
        smoothing.matrix @ scores
        for smoothing, scores in zip(reading.measured.smoothings, (target, general), strict=True)
    ]
    return tuple(
        Candidate(
            point=point,
            scores={name: float(means[i]) for name, means in table.means.items()},
            target=float(target[i]),
            general=float(general[i]),
            utility=float(reading.utilities[i]),
            smoothed=float(decision.smoothed[i]),
            smoothed_target=float(fitted[0][i]),
            smoothed_general=float(fitted[1][i]),
            distance=float(table.distances[i]),
            origin=table.origins[i],
            is_on_front=bool(on_front[i]),
            is_feasible=bool(is_feasible[i]),
            is_tied=bool(decision.is_tied[i]),
            chance_best=float(decision.chances[i]),
            share=float(table.shares[i]),
        )
        for i, point in enumerate(table.points)
    )


def axes_of(table: Table) -> dict[Role, Axis]:
    """How each role's numbers read."""
    return {role: front.role_axis(table.setting.objectives, role) for role in ROLES}


def report_rows(reading: Reading, points: Mapping[Compared, Point]) -> dict[Compared, ReportRow]:
    """Scores on the report items, with intervals."""
    columns = {key: reading.table.column(point) for key, point in points.items()}
    return {
        key: ReportRow(
            point=points[key],
            scores={name: float(means[i]) for name, means in reading.table.means.items()},
            target=interval(reading.role("target")[i], reading.role_samples("target")[:, i]),
            general=interval(reading.role("general")[i], reading.role_samples("general")[:, i]),
            utility=interval(reading.utilities[i], reading.utility_samples[:, i]),
            intervals={
                name: interval(float(reading.table.means[name][i]), samples[:, i])
                for name, samples in reading.samples.items()
            },
        )
        for key, i in columns.items()
    }


def difference(reading: Reading, chosen: Point, other: Point, to: Compared) -> Difference:
    """Chosen minus other, item by item."""
    i, j = reading.table.column(chosen), reading.table.column(other)
    utility = paired(reading.utilities, reading.utility_samples, i, j)
    means, samples = reading.table.means, reading.samples
    return Difference.model_validate(
        {
            "to": to,
            "target": paired(reading.role("target"), reading.role_samples("target"), i, j),
            "general": paired(reading.role("general"), reading.role_samples("general"), i, j),
            "utility": utility,
            "scores": {name: paired(means[name], samples[name], i, j) for name in means},
            "items_to_settle": reading.items_to_settle(i, j, utility.estimate),
        }
    )


def paired(values: Floats, samples: Floats, column: int, other: int) -> Interval:
    """The difference of two columns, drawn together."""
    return interval(values[column] - values[other], samples[:, column] - samples[:, other])


def baseline_row(reading: Reading, baseline: Baseline, column: int, chosen: int) -> BaselineRow:
    """A baseline's scores, and the chosen point's utility less its own.

    Args:
        reading: Of the report items; its scores hold the baseline's.
        baseline: Which.
        column: Where its scores stand.
        chosen: Where the chosen point's do.
    """

    def own(values: Floats, samples: Floats) -> Interval:
        return interval(values[column], samples[:, column])

    return BaselineRow(
        baseline=baseline,
        scores={name: float(means[column]) for name, means in reading.table.means.items()},
        target=own(reading.role("target"), reading.role_samples("target")),
        general=own(reading.role("general"), reading.role_samples("general")),
        utility=own(reading.utilities, reading.utility_samples),
        difference=paired(reading.utilities, reading.utility_samples, chosen, column),
    )
