"""Run an arena: prepare its entrants, then the table.

Promised: `arena.json` says after every entrant how far each has come, and only this process writes
it; entrants are compared once all have run. Where they are prepared, and how many at once (see
`slots`), decides nothing. A killed arena resumes where it stopped, also inside an entrant:
training, search and diagnosis each resume. If an entrant fails, its error is recorded and the
others run. An entrant whose process died twice without progress (out of memory, a crash in a
library, a lost node) is skipped, so that it cannot block the others; `retry` runs it again.
"""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from backtrack.arena.attempts import Attempts
from backtrack.arena.comparison import compare, make_rule, require_comparable
from backtrack.arena.entrants import LiveEntrant
from backtrack.arena.ranking import forgetting_of, make_ranking
from backtrack.arena.ray_slots import RaySlots
from backtrack.arena.schedule import Schedule
from backtrack.arena.slots import OneSlot
from backtrack.diagnose.correlation import correlations
from backtrack.errors import BacktrackError
from backtrack.records import BaseModelReference
from backtrack.records.arena import Arena
from backtrack.records.places import shown
from backtrack.records.record import now
from backtrack.run.files import read_record, write_atomically
from backtrack.selection.stats.bootstrap import LEVEL
from backtrack.selection.stats.scores import axes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from backtrack.arena.comparison import Rule
    from backtrack.recipe.arena import ArenaRecipe
    from backtrack.records.arena import Entrant

    OnProgress = Callable[[int, int, str], None]

RECORD = "arena.json"
ATTEMPTS = "attempts.json"

logger = logging.getLogger(__name__)


def run_arena(
    recipe: ArenaRecipe,
    *,
    recipe_text: str | None = None,
    retry: bool = False,
    on_progress: OnProgress | None = None,
    command: str = "",
) -> Arena:
    """Train and measure what is missing, compare all entrants, write `arena.json`.

    Args:
        recipe: The recipe of the arena.
        recipe_text: The recipe file as the user wrote it, saved beside the record.
        retry: Also run entrants that are skipped because the process died in them.
        on_progress: Called with the number of entrants done, their number and what is done now.
        command: The user's command line, for the record.

    Returns:
        The record; entrants that failed have a `failure`.
    """
    folder = Path(recipe.output) / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    if recipe_text is not None:
        write_atomically(folder / "recipe.yaml", recipe_text)
    arena = _Arena(recipe, folder, command)
    schedule = Schedule(
        arena.entrants,
        Attempts(folder / ATTEMPTS),
        on_progress or (lambda _done, _total, _what: None),
        retry=retry,
    )
    slots = OneSlot() if recipe.cluster.is_one_process else RaySlots(recipe.cluster)
    with closing(slots):
        for _ in schedule.run(slots, recipe.diagnose):
            arena.write(arena.progress())
    return arena.write(arena.comparison())


def read_arena(folder: Path) -> Arena:
    """Read the record of an arena.

    Raises:
        RunError: There is none, or it is damaged.
    """
    return read_record(folder / RECORD, Arena)


class _Arena:
    """All entrants of a running arena, and its record.

    Attributes:
        entrants: The entrants, in the recipe's order.
    """

    def __init__(self, recipe: ArenaRecipe, folder: Path, command: str) -> None:
        self._recipe = recipe
        self._folder = folder
        self._command = command
        recorded = read_arena(folder).entrants if (folder / RECORD).is_file() else ()
        last = {Path(entrant.run).name: entrant for entrant in recorded}
        self.entrants = [LiveEntrant(s, last.get(s.label)) for s in recipe.entrants]

    def write(self, record: Arena) -> Arena:
        """Write `arena.json`."""
        write_atomically(self._folder / RECORD, record.model_dump_json(indent=2) + "\n")
        return record

    def progress(self) -> Arena:
        """The record of how far each entrant has come."""
        records = [entrant.record(self._folder) for entrant in self.entrants]
        return self._record(records)

    def comparison(self) -> Arena:
        """The record of all entrants compared under one rule; of progress if none was measured."""
        comparable = self._comparable()
        if not comparable:
            return self.progress()
        rule = make_rule(comparable)
        records = []
        for entrant in self.entrants:
            record = entrant.record(self._folder)
            is_comparable = entrant in comparable
            records.append(_compared(entrant, record, rule) if is_comparable else record)
        return self._record(records).model_copy(update=_results(comparable[0], records, rule))

    def _record(self, entrants: Sequence[Entrant]) -> Arena:
        return Arena(
            name=self._recipe.name,
            base=self._base(),
            weight=self._recipe.entrants[0].recipe.select.weight,
            entrants=tuple(entrants),
            level=LEVEL,
            notes=tuple(self._notes()),
            settings=self._recipe.shared,
            command=self._command,
            created=now(),
        )

    def _comparable(self) -> list[LiveEntrant]:
        """Entrants measured alike; those that were measured otherwise become failures."""
        comparable: list[LiveEntrant] = []
        for entrant in self.entrants:
            if entrant.failure or not entrant.is_prepared:
                continue
            try:
                # The first is compared with itself: reading its scores shows that it has some.
                require_comparable(comparable[0] if comparable else entrant, entrant)
            except BacktrackError as error:
                entrant.failure = str(error)
            else:
                comparable.append(entrant)
        return comparable

    def _base(self) -> BaseModelReference:
        prepared = next((e for e in self.entrants if e.is_prepared), None)
        if prepared is not None:
            base = prepared.run.base
            return base.model_copy(update={"model": shown(base.model), "run": None})
        section = self._recipe.entrants[0].recipe.base
        return BaseModelReference.model_validate(section.model_dump())

    def _notes(self) -> Iterator[str]:
        waiting = []
        for entrant in self.entrants:
            if entrant.failure:
                yield f"{entrant.spec.label} failed: {entrant.failure}"
            elif not entrant.is_prepared:
                waiting.append(entrant.spec.label)
        if waiting:
            yield f"{len(waiting)} entrants have not run yet: {', '.join(waiting)}."


def _compared(entrant: LiveEntrant, record: Entrant, rule: Rule) -> Entrant:
    try:
        return compare(entrant, record, rule)
    except BacktrackError as error:
        return record.model_copy(update={"state": "failed", "failure": str(error)})


def _results(first: LiveEntrant, entrants: Sequence[Entrant], rule: Rule) -> Mapping[str, object]:
    """Fields of an arena that only a comparison gives."""
    setting, axes = first.table.setting, axes_of(first.table)
    forgetting = forgetting_of(entrants, axes)
    return {
        "objectives": setting.objectives,
        "axes": axes,
        "yardsticks": dict(first.table.yardsticks),
        "corner": rule.corner,
        "reach": rule.reach,
        "base_report": next((e.report["base"] for e in entrants if e.report), None),
        "ranking": make_ranking(entrants),
        "num_items": {name: {"selection": len(i)} for name, i in setting.item_ids.items()},
        "correlations": correlations(forgetting, "entrants"),
        "forgetting": forgetting,
    }
