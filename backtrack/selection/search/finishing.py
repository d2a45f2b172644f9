"""Finish the search that was begun before a point is chosen, or say what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack.selection.search.begun import (
    asked_extent,
    begun_search,
    budget_of,
    search_key,
)
from backtrack.selection.search.space import anchors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backtrack.records.search import BegunSearch
    from backtrack.selection.measure.evaluator import Evaluator
    from backtrack.selection.measure.progress import Progress
    from backtrack.selection.stats.table import ScoreTable, SplitSetting


def finish(evaluator: Evaluator, on_progress: Callable[[Progress], None] | None) -> None:
    """Search on until the search that was begun last is finished; begin the recipe's if none was.

    Raises:
        RunError: Another process searches the run.
        ObjectiveError: An objective cannot be measured. Earlier measurements stay recorded.
    """
    begun = _begun(evaluator, evaluator.find_setting("selection"))
    if begun is not None and begun.is_finished:
        return
    section = evaluator.section
    trials, budget = section.trials, section.budget
    if begun is not None:
        trials, budget = begun.trials, budget_of(begun)
    # Optuna takes half a second to import and is not needed to choose again.
    from backtrack.selection.search.driver import Extent, search_by

    search_by(evaluator, Extent(trials, budget, section.storage), None, on_progress)


def unfinished(evaluator: Evaluator, table: ScoreTable) -> Iterator[str]:
    """Say what is missing where a point is chosen before the search is finished."""
    begun = _begun(evaluator, table.setting)
    if begun is not None and begun.is_finished:
        return
    missing = set(anchors(evaluator.run.steps, evaluator.section)) - set(table.points)
    partial = sum(share < 1 for share in table.shares)
    yield (
        f"THE SEARCH IS NOT FINISHED: {len(table.points)} points are measured, {partial} of them "
        f"on some of the items only; {len(missing)} points that every search measures are not. "
        "Another point may well be better. `backtrack select` without --as-is finishes it."
    )


def _begun(evaluator: Evaluator, setting: SplitSetting | None) -> BegunSearch | None:
    """The search that was begun last, if it is the one that the recipe still asks for."""
    if setting is None:
        return None
    section = evaluator.section
    begun = begun_search(evaluator.run, search_key(section, setting))
    return begun if begun is not None and begun.asked == asked_extent(section) else None
