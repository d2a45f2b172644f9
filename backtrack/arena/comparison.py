"""Judge all entrants under one rule: the same items, yardsticks, weight and box.

YARDSTICKS are common: where an objective is no fraction, 0 is the worst of the base and all final
checkpoints, 100 the best score any entrant reached. The BOX of the hypervolumes runs from the
worst of the base and all final checkpoints to the best any entrant reached, on each role; an
entrant's share is what its points dominate of it. Points on its front stay the same in every
bootstrap sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backtrack.errors import FailureError, SelectionError
from backtrack.point import Point
from backtrack.records import ROLES, Axis
from backtrack.records.arena import ArenaPoint
from backtrack.records.selection import Yardstick
from backtrack.selection.choice.rule import choose
from backtrack.selection.choice.verdict import verdict
from backtrack.selection.measure.evaluator import Evaluator
from backtrack.selection.measure.progress import Meter
from backtrack.selection.stats.bootstrap import interval
from backtrack.selection.stats.bounds import meets_all
from backtrack.selection.stats.comparisons import differences, report_rows
from backtrack.selection.stats.front import hypervolume, pareto_front
from backtrack.selection.stats.scores import RoleScores, axes_of
from backtrack.selection.stats.utility import POINTS, make_yardsticks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.recipe.arena import ArenaEntrant
    from backtrack.records import Interval
    from backtrack.records.selection import Constraints, Difference, ReportRow
    from backtrack.run.directory import Run
    from backtrack.selection.stats.comparisons import Compared
    from backtrack.selection.stats.table import ScoreTable

    Corner = tuple[float, float]

_POINTS = Axis(unit=POINTS, direction="maximize")


@dataclass(frozen=True)
class Contender:
    """An entrant that was measured.

    Attributes:
        entrant: Under one seed.
        run: Its run.
        bench: What is measured on it.
        table: Scores on the selection items; holds base and final checkpoint.
    """

    entrant: ArenaEntrant
    run: Run
    evaluator: Evaluator
    table: ScoreTable

    @property
    def ends(self) -> tuple[int, int]:
        """Columns of base and final checkpoint."""
        return self.table.column(Point.base()), self.table.column(self.run.final)

    def weighted(self, rule: Rule) -> RoleScores:
        """The selection items under the rule."""
        return RoleScores(self.table, rule.yardsticks, self.evaluator.section.seed)


@dataclass(frozen=True)
class Rule:
    """What all entrants are judged by.

    Attributes:
        weight: Of the target.
        yardsticks: How each objective's score becomes points.
        constraints: Bounds on the chosen point.
        corner: Target and general points at which the box begins.
        reach: Those at which it ends.
    """

    weight: float
    yardsticks: Mapping[str, Yardstick]
    constraints: Constraints
    corner: Corner = (0.0, 0.0)
    reach: Corner = (0.0, 0.0)


@dataclass(frozen=True)
class Verdict:
    """What the rule makes of an entrant: see `Entrant`."""

    points: tuple[ArenaPoint, ...]
    chosen: Point
    report: dict[Compared, ReportRow]
    differences: tuple[Difference, ...]
    hypervolume: Interval | None
    sentence: str


def contender(entrant: ArenaEntrant, run: Run) -> Contender:
    """Read what was measured of an entrant.

    Raises:
        FailureError: Base and final checkpoint are not on record.
    """
    evaluator = Evaluator(run, entrant.recipe, None, None)
    setting = evaluator.standing("selection")
    if setting is None:
        raise FailureError(f"{run.path}: base and final checkpoint are not measured yet.")
    return Contender(entrant, run, evaluator, evaluator.table(setting))


def require_comparable(one: Contender, other: Contender) -> None:
    """Refuse an entrant that was measured on other items or by other objectives.

    Raises:
        FailureError: Names the first objective that differs.
    """
    theirs = {o.name: o.fingerprint for o in one.table.setting.objectives}
    for o in other.table.setting.objectives:
        same_items = one.table.setting.item_ids.get(o.name) == other.table.setting.item_ids[o.name]
        if theirs.get(o.name) != o.fingerprint or not same_items:
            raise FailureError(
                f"objective {o.name!r} was measured otherwise than of {one.entrant.label}: by "
                "another tokenizer, other documents or items. The two cannot be compared."
            )


def make_rule(contenders: Sequence[Contender]) -> Rule:
    """The rule that all measured entrants together give."""
    section = contenders[0].entrant.recipe.select
    bounds = section.model_copy(update={"weight": section.weight})
    rule = Rule(section.weight, _yardsticks(contenders), bounds)
    worst, best = [], []
    for role in ROLES:
        values = [c.weighted(rule).role_points(role) for c in contenders]
        ends = [v[list(c.ends)] for v, c in zip(values, contenders, strict=True)]
        worst.append(float(np.min(ends)))
        best.append(
            max(float(v[_whole(c.table)].max()) for v, c in zip(values, contenders, strict=True))
        )
    return Rule(section.weight, rule.yardsticks, bounds, (worst[0], worst[1]), (best[0], best[1]))


def _yardsticks(contenders: Sequence[Contender]) -> dict[str, Yardstick]:
    objectives = contenders[0].table.setting.objectives
    each = [make_yardsticks(objectives, c.table.means, *c.ends) for c in contenders]
    found = {}
    for o in objectives:
        zeros = [yardsticks[o.name].zero for yardsticks in each]
        hundreds = [yardsticks[o.name].hundred for yardsticks in each]
        is_more = each[0][o.name].hundred >= each[0][o.name].zero and o.direction == "maximize"
        worst, best = (min, max) if is_more else (max, min)
        found[o.name] = Yardstick(zero=worst(zeros), hundred=best(hundreds))
    return found


def _whole(table: ScoreTable) -> list[int]:
    return [i for i, share in enumerate(table.shares) if share == 1]


def judge(one: Contender, rule: Rule) -> Verdict:
    """The chosen point of an entrant and all that the table says of it.

    The report items of base, chosen and final are measured where they are not on record.

    Raises:
        SelectionError: None of its points meets the constraints.
    """
    weighted = one.weighted(rule)
    bounds = weighted.bounds(*one.ends, rule.constraints)
    is_feasible = meets_all(bounds, len(one.table.points))
    if not (is_feasible & weighted.smoothed.is_eligible).any():
        raise SelectionError("none of its measured points meets every constraint.")
    chosen = one.table.points[choose(weighted.smoothed.at(rule.weight), is_feasible).chosen]
    table = _report_table(one, chosen)
    report = RoleScores(table, rule.yardsticks, weighted.seed).at(rule.weight)
    base, final = Point.base(), one.run.final
    found = differences(report, chosen, final)
    return Verdict(
        points=_points(one, weighted),
        chosen=chosen,
        report=report_rows(report, {"base": base, "chosen": chosen, "final": final}),
        differences=found,
        hypervolume=_hypervolume(one, weighted, rule),
        sentence=verdict(chosen, final, found),
    )


def _report_table(one: Contender, chosen: Point) -> ScoreTable:
    """Scores on the report items at base, chosen and final."""
    wanted = [*one.evaluator.ends, chosen]
    setting = one.evaluator.standing("report", like=one.table.setting)
    if setting is not None:
        table = one.evaluator.table(setting)
        if table.holds(wanted):
            return table
    one.evaluator.build()
    for point in wanted:
        one.evaluator.measure(
            point, "report", "report", Meter(one.evaluator.num_items("report"), None)
        )
    return one.evaluator.table(one.evaluator.setting("report"))


def _points(one: Contender, weighted: RoleScores) -> tuple[ArenaPoint, ...]:
    target, general = (weighted.role(role) for role in ROLES)
    whole = _whole(one.table)
    on_front = np.zeros(len(one.table.points), dtype=bool)
    on_front[whole] = pareto_front(target[whole], general[whole], axes_of(one.table))
    return tuple(
        ArenaPoint(
            point=point,
            target=float(target[i]),
            general=float(general[i]),
            is_checkpoint=point.alpha == 1 and point.profile == "uniform" and not point.is_base,
            is_on_front=bool(on_front[i]),
            share=float(one.table.shares[i]),
        )
        for i, point in enumerate(one.table.points)
    )


def _hypervolume(one: Contender, weighted: RoleScores, rule: Rule) -> Interval | None:
    box = (rule.reach[0] - rule.corner[0]) * (rule.reach[1] - rule.corner[1])
    if box <= 0:
        return None
    whole = _whole(one.table)
    values = [weighted.role_points(role) for role in ROLES]
    samples = [weighted.role_point_samples(role) for role in ROLES]
    target, general = (v[whole] for v in values)
    axes = dict.fromkeys(ROLES, _POINTS)
    kept = np.array(whole)[pareto_front(target, general, axes)]
    estimate = hypervolume(values[0][kept], values[1][kept], rule.corner) / box
    drawn = [
        hypervolume(t, g, rule.corner) / box
        for t, g in zip(samples[0][:, kept], samples[1][:, kept], strict=True)
    ]
    return interval(estimate, np.array(drawn))
