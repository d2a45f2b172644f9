"""Run an arena: entrant by entrant, then the table.

Promised: `arena.json` says after every entrant how far each has come, and is judged when all had
their turn; a killed arena goes on where it stopped, inside an entrant too (training, search and
diagnosis each resume). What goes wrong with one entrant is written down with it, and the others go
on. An entrant in which the process itself died twice without getting further (memory, a crash in a
library) is given up, so that it cannot keep the others from their turn; `retry` gives it another.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from backtrack.arena.comparison import contender, judge, make_rule, require_comparable
from backtrack.arena.entrants import (
    Times,
    enter,
    geometry_of,
    num_parameters,
    num_trainable,
    paradigm_of,
    run_folder,
)
from backtrack.arena.ranking import lost_by, ranking
from backtrack.diagnose.correlation import correlations
from backtrack.errors import BacktrackError, FailureError
from backtrack.records import BaseModelReference, Method, Record
from backtrack.records.arena import Arena, Entrant
from backtrack.run.directory import Run, now, read_record, write_atomically
from backtrack.selection.stats.bootstrap import LEVEL
from backtrack.selection.stats.scores import axes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backtrack.arena.comparison import Contender, Rule
    from backtrack.recipe.arena import ArenaEntrant, ArenaRecipe

    OnProgress = Callable[[int, int, str], None]

RECORD = "arena.json"
TRYING = "trying.json"
MAX_DEATHS = 2

logger = logging.getLogger(__name__)


def run_arena(
    arena: ArenaRecipe,
    *,
    recipe_text: str | None = None,
    retry: bool = False,
    on_progress: OnProgress | None = None,
    command: str = "",
) -> Arena:
    """Train what is missing, measure everything, judge it under one rule, write `arena.json`.

    Args:
        arena: The recipe.
        recipe_text: The user's own words, kept beside the record.
        retry: Also try entrants again that were given up.
        on_progress: Called as entrants go on: how many are done, of how many, what goes on.
        command: What the user typed, for the record.

    Returns:
        The record; entrants that failed say why.
    """
    folder = Path(arena.output) / arena.name
    folder.mkdir(parents=True, exist_ok=True)
    if recipe_text is not None:
        write_atomically(folder / "recipe.yaml", recipe_text)
    work = _Arena(arena, folder, command, on_progress or (lambda _done, _total, _what: None))
    for number, entrant in enumerate(arena.entrants):
        work.let_in(entrant, number, retry=retry)
        work.write()
    return work.write(is_judged=True)


def read_arena(folder: Path) -> Arena:
    """An arena's record.

    Raises:
        RunError: There is none, or it is damaged.
    """
    return read_record(folder / RECORD, Arena)


class Trial(Record):
    """An entrant that has its turn, or in which the process died.

    Attributes:
        deaths: How often the process died in it, this time counted as one.
        progress: What it had on record when it began.
    """

    deaths: int
    progress: int


class _Arena:
    """Entrants so far, and what is known of them."""

    def __init__(self, arena: ArenaRecipe, folder: Path, command: str, report: OnProgress) -> None:
        self._arena = arena
        self._folder = folder
        self._command = command
        self._report = report
        self._runs: dict[str, Run] = {}
        self._times: dict[str, Times] = {}
        self._failures: dict[str, str] = {}
        before = read_arena(folder).entrants if (folder / RECORD).is_file() else ()
        self._before = {Path(entrant.run).name: entrant for entrant in before}
        self._trials = _read_trials(folder / TRYING)

    def let_in(self, entrant: ArenaEntrant, number: int, *, retry: bool) -> None:
        """One entrant's turn; what goes wrong is kept with it."""
        total = len(self._arena.entrants)

        def say(what: str) -> None:
            self._report(number, total, f"{entrant.label}: {what}")

        given_up = self._is_given_up(entrant) and not retry
        try:
            self._require_sound(entrant, retry=retry)
            self._runs[entrant.label], self._times[entrant.label] = enter(
                entrant, self._arena, say
            )
        except KeyboardInterrupt:
            self._note(entrant, None)
            raise
        except BacktrackError as error:
            self._failures[entrant.label] = str(error)
        except Exception as error:  # one entrant must not take the others down
            logger.warning("%s failed", entrant.label, exc_info=error)
            text = " ".join(str(error).split())
            self._failures[entrant.label] = f"{type(error).__name__}: {text[:500]}"
        if not given_up:
            self._note(entrant, None)
        self._report(number + 1, total, entrant.label)

    def _require_sound(self, entrant: ArenaEntrant, *, retry: bool) -> None:
        """Refuse an entrant that cannot start, or in which the process keeps dying."""
        if entrant.like in self._failures:
            raise FailureError(f"it has the checkpoints of {entrant.like}, which failed.")
        if self._is_given_up(entrant) and not retry:
            raise FailureError(
                f"the process died in it {MAX_DEATHS} times without getting further, and it was "
                "given up; try again with --retry."
            )
        trial = self._trials.get(entrant.label)
        here = _progress(entrant)
        deaths = trial.deaths if trial and trial.progress == here and not retry else 0
        self._note(entrant, Trial(deaths=deaths + 1, progress=here))

    def _is_given_up(self, entrant: ArenaEntrant) -> bool:
        trial = self._trials.get(entrant.label)
        if trial is None or trial.progress != _progress(entrant):
            return False
        return trial.deaths >= MAX_DEATHS

    def _note(self, entrant: ArenaEntrant, trial: Trial | None) -> None:
        """Write down how often the process will have died in an entrant if it dies now."""
        self._trials.pop(entrant.label, None)
        if trial is not None:
            self._trials[entrant.label] = trial
        found = {label: each.model_dump() for label, each in self._trials.items()}
        write_atomically(self._folder / TRYING, json.dumps(found) + "\n")

    def write(self, *, is_judged: bool = False) -> Arena:
        """Write the record of what there is; the rule is asked once all had their turn."""
        record = self._record(is_judged=is_judged)
        write_atomically(self._folder / RECORD, record.model_dump_json(indent=2) + "\n")
        return record

    def _record(self, *, is_judged: bool) -> Arena:
        contenders = self._contenders() if is_judged else []
        entrants = {e.label: self._entrant(e) for e in self._arena.entrants}
        record = Arena(
            name=self._arena.name,
            base=self._base(),
            weight=self._arena.entrants[0].recipe.select.weight,
            entrants=tuple(entrants.values()),
            level=LEVEL,
            settings=self._arena.shared,
            command=self._command,
            created=now(),
        )
        if not contenders:
            return record.model_copy(update={"notes": tuple(self._notes())})
        rule = make_rule(contenders)
        for one in contenders:
            entrants[one.entrant.label] = _judged(one, rule, entrants[one.entrant.label])
        return self._joined(record, contenders, rule, tuple(entrants.values()))

    def _joined(
        self,
        record: Arena,
        contenders: Sequence[Contender],
        rule: Rule,
        entrants: tuple[Entrant, ...],
    ) -> Arena:
        axes = axes_of(contenders[0].table)
        lost = lost_by(entrants, axes)
        setting = contenders[0].table.setting
        report = next((e.report["base"] for e in entrants if e.report), None)
        return record.model_copy(
            update={
                "objectives": setting.objectives,
                "axes": axes,
                "yardsticks": dict(rule.yardsticks),
                "corner": rule.corner,
                "reach": rule.reach,
                "base_report": report,
                "entrants": entrants,
                "ranking": ranking(entrants),
                "num_items": {name: {"selection": len(i)} for name, i in setting.item_ids.items()},
                "correlations": correlations(lost, "entrants"),
                "forgetting": lost,
                "notes": tuple(self._notes()),
            }
        )

    def _contenders(self) -> list[Contender]:
        """Entrants that were measured, and comparably; the others are failures."""
        found: list[Contender] = []
        for entrant in self._arena.entrants:
            if entrant.label not in self._runs or entrant.label in self._failures:
                continue
            try:
                one = contender(entrant, self._runs[entrant.label])
                if found:
                    require_comparable(found[0], one)
            except BacktrackError as error:
                self._failures[entrant.label] = str(error)
            else:
                found.append(one)
        return found

    def _entrant(self, entrant: ArenaEntrant) -> Entrant:
        """What is known of an entrant before the rule is asked."""
        method = entrant.recipe.method
        run = self._runs.get(entrant.label)
        failure = self._failures.get(entrant.label)
        kept = self._before.get(entrant.label)
        times = self._times.get(entrant.label, Times())
        settings = method.model_dump(exclude={"kind"}) if method else {}
        return Entrant(
            name=entrant.name,
            seed=None if entrant.run else entrant.seed,
            paradigm=paradigm_of(entrant),
            method=Method(kind=method.kind, settings=settings)
            if method
            else (run.manifest.method if run else Method(kind="unknown")),
            run=str(run_folder(entrant).relative_to(self._folder)),
            state="failed" if failure else "trained" if run else "waiting",
            failure=failure,
            num_trainable=num_trainable(run) if run else None,
            num_parameters=num_parameters(run) if run else None,
            num_steps=run.final.step if run else None,
            final=run.final if run else None,
            geometry=geometry_of(run) if run else {},
            train_seconds=times.training or (kept.train_seconds if kept else None),
            measure_seconds=times.measuring or (kept.measure_seconds if kept else None),
        )

    def _base(self) -> BaseModelReference:
        run = next(iter(self._runs.values()), None)
        if run is not None:
            return run.base
        section = self._arena.entrants[0].recipe.base
        return BaseModelReference.model_validate(section.model_dump())

    def _notes(self) -> list[str]:
        found = [f"{label} failed: {why}" for label, why in self._failures.items()]
        waiting = [e.label for e in self._arena.entrants if e.label not in self._runs]
        waiting = [label for label in waiting if label not in self._failures]
        if waiting:
            found.append(f"{len(waiting)} entrants have not had their turn: {', '.join(waiting)}.")
        return found


def _read_trials(path: Path) -> dict[str, Trial]:
    """Entrants in which the process died, by label."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(label): Trial.model_validate(each) for label, each in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _progress(entrant: ArenaEntrant) -> int:
    """Bytes of what an entrant's run has on record: they grow as it gets further."""
    folder = run_folder(entrant)
    names = ("trajectory/index.jsonl", "measurements.jsonl", "diagnosis.jsonl")
    return sum((folder / n).stat().st_size for n in names if (folder / n).is_file())


def _judged(one: Contender, rule: Rule, entrant: Entrant) -> Entrant:
    try:
        found = judge(one, rule)
    except BacktrackError as error:
        return entrant.model_copy(update={"state": "failed", "failure": str(error)})
    return entrant.model_copy(
        update={
            "state": "measured",
            "form": one.table.setting.form,
            "curve": one.table.setting.curve,
            "points": found.points,
            "chosen": found.chosen,
            "report": found.report,
            "differences": found.differences,
            "hypervolume": found.hypervolume,
            "verdict": found.sentence,
        }
    )
