"""Measure the baselines that are not points on the selection items, and add them to the study.

They are measured after racing. Their items are outside the budget: each baseline costs all
selection items once. None of them can be chosen, since none is a point.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backtrack.records import ROLES
from backtrack.selection.measure.baselines import measure_missing, off_the_path, with_rows
from backtrack.selection.stats.scores import RoleScores

if TYPE_CHECKING:
    from backtrack.selection.measure.evaluator import Evaluator
    from backtrack.selection.search.study import Study


def measure_baselines(evaluator: Evaluator, study: Study) -> None:
    """Measure the baselines that are not recorded yet, and add those the study lacks.

    Raises:
        UsageError: A baseline cannot be made from this run.
        ObjectiveError: A score is missing or not finite.
    """
    is_in_process = evaluator.is_in_process
    baselines, _ = off_the_path(evaluator.run, evaluator.section, is_in_process=is_in_process)
    if not baselines:
        return
    table = evaluator.table(evaluator.setting("selection"))
    if not table.knows(evaluator.ends):
        return
    scores = measure_missing(evaluator, table.setting, baselines)
    joined = replace(table, scores=with_rows(table, list(scores.values())))
    by_role = RoleScores(joined, evaluator.section.seed)
    known = study.complete()
    for column, baseline in enumerate(scores, start=len(table.points)):
        if str(baseline) not in known:
            values = [float(by_role.role(role)[column]) for role in ROLES]
            means = {name: float(mean[column]) for name, mean in joined.means.items()}
            study.add_apart(str(baseline), values, means)
