"""Compare all entrants under one rule: the same items, weight and box.

The BOX of the hypervolumes runs from the worst role scores of the base and all final checkpoints
to the best that any entrant reached; an entrant's hypervolume is the share of the box that its
points dominate. The points on an entrant's front are the same in every bootstrap sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from backtrack.errors import FailureError
from backtrack.records import ROLES
from backtrack.records.arena import ArenaPoint
from backtrack.records.search import Evaluation
from backtrack.selection.choice.candidates import choose_point
from backtrack.selection.choice.verdict import verdict
from backtrack.selection.measure.progress import Meter
from backtrack.selection.stats.bootstrap import interval
from backtrack.selection.stats.comparisons import differences, report_rows
from backtrack.selection.stats.front import hypervolume, pareto_front

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.arena.entrants import LiveEntrant
    from backtrack.point import Point
    from backtrack.records import Interval
    from backtrack.records.arena import Entrant
    from backtrack.records.selection import Candidate, Constraints
    from backtrack.selection.choice.candidates import Outcome
    from backtrack.selection.stats.scores import RoleScores
    from backtrack.selection.stats.table import ScoreTable

    Corner = tuple[float, float]


@dataclass(frozen=True)
class Rule:
    """What all entrants are compared by.

    Attributes:
        weight: Weight of the target.
        constraints: Bounds on the chosen point.
        corner: Lower corner of the box: target and general score, in points.
        reach: Upper corner of the box.
    """

    weight: float
    constraints: Constraints
    corner: Corner = (0.0, 0.0)
    reach: Corner = (0.0, 0.0)


def require_comparable(first: LiveEntrant, other: LiveEntrant) -> None:
    """Refuse an entrant that was measured on other items or by other objectives.

    Raises:
        FailureError: Names the first objective that differs.
    """
    if first.spec.recipe.engine.decisive != other.spec.recipe.engine.decisive:
        raise FailureError(
            f"it was measured by another engine than {first.spec.label}, or with other settings "
            "of it. The two cannot be compared: give both the same `engine`."
        )
    expected, setting = first.table.setting, other.table.setting
    fingerprints = {o.name: o.fingerprint for o in expected.objectives}
    for o in setting.objectives:
        has_same_items = expected.item_ids.get(o.name) == setting.item_ids[o.name]
        if fingerprints.get(o.name) != o.fingerprint or not has_same_items:
            raise FailureError(
                f"objective {o.name!r} was not measured as it was for {first.spec.label}: with "
                "another tokenizer, on other documents or other items. The two cannot be compared."
            )


def make_rule(entrants: Sequence[LiveEntrant]) -> Rule:
    """Make the rule from the scores of all entrants that were measured."""
    section = entrants[0].spec.recipe.select
    rule = Rule(section.weight, section)
    worst, best = [], []
    for role in ROLES:
        scores = [(e, e.scores(e.table).role(role)) for e in entrants]
        worst.append(min(float(points[list(e.ends)].min()) for e, points in scores))
        best.append(max(float(points[_whole(e.table)].max()) for e, points in scores))
    return replace(rule, corner=(worst[0], worst[1]), reach=(best[0], best[1]))


def _whole(table: ScoreTable) -> list[int]:
    """Columns of points that were measured on all items."""
    return [i for i, share in enumerate(table.shares) if share == 1]


def compare(entrant: LiveEntrant, record: Entrant, rule: Rule) -> Entrant:
    """Add to an entrant's record its chosen point and all that the arena's table shows of it.

    Base, chosen point and final checkpoint are measured on the report items unless they are.

    Raises:
        SelectionError: None of its points meets the bounds.
    """
    base, final = entrant.evaluator.ends
    scores = entrant.scores(entrant.table)
    outcome = choose_point(scores, final, rule.weight, rule.constraints)
    chosen = outcome.chosen
    report = entrant.scores(_report_table(entrant, chosen)).at(rule.weight)
    compared = differences(report, chosen, final)
    return record.model_copy(
        update={
            "state": "measured",
            "form": entrant.table.setting.form,
            "curve": entrant.table.setting.curve,
            "points": _points(outcome),
            "chosen": chosen,
            "report": report_rows(report, {"base": base, "chosen": chosen, "final": final}),
            "differences": compared,
            "hypervolume": _hypervolume(scores, rule),
            "verdict": verdict(chosen, final, compared, outcome.cautious),
        }
    )


def _report_table(entrant: LiveEntrant, chosen: Point) -> ScoreTable:
    """Scores on the report items of base, final checkpoint and chosen point."""
    evaluator = entrant.evaluator
    points = [*evaluator.ends, chosen]
    setting = evaluator.find_setting("report")
    if setting is not None:
        table = evaluator.table(setting)
        if table.holds(points):
            return table
    evaluator.build()
    evaluator.measure([Evaluation(p, None, "report") for p in points], "report", Meter(0, None))
    return evaluator.table(evaluator.setting("report"))


def _points(outcome: Outcome) -> tuple[ArenaPoint, ...]:
    """All measured points; the front is that of unsmoothed scores on all items."""
    table = outcome.scores.table
    target, general = (outcome.scores.role(role) for role in ROLES)
    whole = _whole(table)
    is_on_front = np.zeros(len(table.points), dtype=bool)
    is_on_front[whole] = pareto_front(target[whole], general[whole])
    return tuple(
        _point(candidate, is_on_front=bool(flag))
        for candidate, flag in zip(outcome.candidates, is_on_front, strict=True)
    )


def _point(candidate: Candidate, *, is_on_front: bool) -> ArenaPoint:
    point = candidate.point
    return ArenaPoint(
        point=point,
        target=candidate.target,
        general=candidate.general,
        is_checkpoint=point.alpha == 1 and point.profile == "uniform" and not point.is_base,
        is_on_front=is_on_front,
        share=candidate.share,
    )


def _hypervolume(scores: RoleScores, rule: Rule) -> Interval | None:
    """Share of the box that the entrant's points dominate; None if the box is empty."""
    box = (rule.reach[0] - rule.corner[0]) * (rule.reach[1] - rule.corner[1])
    if box <= 0:
        return None
    target, general = (scores.role(role) for role in ROLES)
    target_samples, general_samples = (scores.role_samples(role) for role in ROLES)
    whole = np.array(_whole(scores.table))
    columns = whole[pareto_front(target[whole], general[whole])]
    estimate = hypervolume(target[columns], general[columns], rule.corner) / box
    samples = [
        hypervolume(t, g, rule.corner) / box
        for t, g in zip(target_samples[:, columns], general_samples[:, columns], strict=True)
    ]
    return interval(estimate, np.array(samples))
