"""Baselines that are no points, in the search's study: measured on the selection items too.

They come after the race, one worker measures them, and their items are outside its budget: each
costs all selection items once. None of them can be chosen, since none can be placed.
"""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from backtrack.records import ROLES
from backtrack.selection.measure.baselines import (
    measure_baseline,
    off_the_path,
    recorded,
    with_rows,
)
from backtrack.selection.stats.scores import RoleScores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backtrack.run.directory import Run
    from backtrack.selection.measure.evaluator import Evaluator
    from backtrack.selection.search.study import Ledger


def compare(evaluator: Evaluator, ledger: Ledger) -> None:
    """Measure what is not on record, and tell the study of what it does not know.

    Raises:
        UsageError: A baseline cannot be made of this run.
        ObjectiveError: A score is missing or not finite.
    """
    off, _ = off_the_path(evaluator.run, evaluator.section, is_served=evaluator.is_served)
    if not off:
        return
    with _first(evaluator.run) as is_first:
        table = evaluator.table(evaluator.setting("selection"))
        if not is_first or not table.knows(evaluator.ends):
            return
        there = recorded(evaluator.run, table.setting, off)
        for baseline in off:
            if baseline not in there:
                measure_baseline(
                    evaluator.run,
                    evaluator.placement,
                    evaluator.objectives,
                    table.setting,
                    baseline,
                )
        _tell(evaluator, ledger)


def _tell(evaluator: Evaluator, ledger: Ledger) -> None:
    table = evaluator.table(evaluator.setting("selection"))
    off, _ = off_the_path(evaluator.run, evaluator.section, is_served=evaluator.is_served)
    there = recorded(evaluator.run, table.setting, off)
    joined = replace(table, scores=with_rows(table, list(there.values())))
    weighted = RoleScores.of_selection(joined, evaluator.run.final, evaluator.section.seed)
    known = ledger.known()
    for column, baseline in enumerate(there, start=len(table.points)):
        if str(baseline) not in known:
            values = [float(weighted.role(role)[column]) for role in ROLES]
            means = {name: float(mean[column]) for name, mean in joined.means.items()}
            ledger.add_apart(str(baseline), values, means)


@contextmanager
def _first(run: Run) -> Iterator[bool]:
    """One worker measures; the others, which find it at work, go on."""
    with (run.path / ".baselines.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
