"""Entrants on their way through slots that die, fail and wait for room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from backtrack.arena.attempts import Attempts
from backtrack.arena.entrants import LiveEntrant
from backtrack.arena.preparing import Outcome
from backtrack.arena.schedule import Schedule
from backtrack.arena.slots import Slots
from backtrack.recipe import Recipe
from backtrack.recipe.arena import DiagnoseSection, EntrantSpec
from backtrack.run.directory import Run
from tests.models import make_base, make_manifest

if TYPE_CHECKING:
    from backtrack.arena.slots import OnStep

DIED = Outcome(death="a lost node")
PREPARED = Outcome()


class Scripted(Slots):
    """Two slots in which entrants end as they are told to, the one started first, first."""

    number = 2

    def __init__(self, outcomes: dict[str, list[Outcome]], attempts: Path) -> None:
        self._outcomes, self._file = outcomes, attempts
        self._running: list[EntrantSpec] = []
        self.seen: list[list[str]] = []
        """What ran at the same time, whenever the schedule waited."""
        self.counted: list[list[str]] = []
        """Which attempts were recorded when one had begun."""

    @override
    def start(self, spec: EntrantSpec, diagnosis: DiagnoseSection | None) -> None:
        self._running.append(spec)

    @override
    def wait(self, on_step: OnStep) -> tuple[str, Outcome]:
        self.seen.append([spec.label for spec in self._running])
        spec = self._running.pop(0)
        on_step(spec.label, "starting")
        self.counted.append(list(json.loads(self._file.read_text())))
        outcome = self._outcomes[spec.label].pop(0)
        if outcome.train_seconds:  # it got further
            index = Path(spec.recipe.output) / spec.label / "trajectory" / "index.jsonl"
            index.parent.mkdir(exist_ok=True)
            index.write_text("x" * int(outcome.train_seconds))
        return spec.label, outcome


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


def entrant(base: Path, label: str, like: str | None = None) -> LiveEntrant:
    """An entrant whose run lies there already."""
    folder = base.parent / "runs"
    Run.create(folder / label, make_manifest(base, "lora"))
    values = {"name": label, "base": str(base), "output": str(folder)}
    return LiveEntrant(
        EntrantSpec(label, 0, label, Recipe.model_validate(values), like=like), None
    )


def ran(
    entrants: list[LiveEntrant], outcomes: dict[str, list[Outcome]], folder: Path
) -> tuple[dict[str, str | None], Scripted]:
    """Why each failed, in the order of ending; and the slots."""
    file = folder / "attempts.json"
    slots = Scripted(outcomes, file)
    schedule = Schedule(entrants, Attempts(file), lambda *_: None, retry=False)
    found = {e.spec.label: e.failure for e in schedule.run(slots, None)}
    assert json.loads(file.read_text()) == {} or "died" in str(found)
    return found, slots


def test_one_that_died_is_started_again_and_one_that_fails_is_not(base, tmp_path) -> None:
    entrants = [entrant(base, label) for label in "abc"]
    failed = Outcome(failure="no memory")
    found, slots = ran(entrants, {"a": [DIED, PREPARED], "b": [failed], "c": [PREPARED]}, tmp_path)
    assert found == {"b": "no memory", "a": None, "c": None}
    assert slots.seen == [["a", "b"], ["b", "a"], ["a", "c"], ["c"]]
    assert slots.counted == [["a"], ["a", "b"], ["a"], ["c"]], "what waits for room has not begun"


def test_two_deaths_without_progress_are_enough(base, tmp_path) -> None:
    further = Outcome(death="again", train_seconds=3)
    entrants = [entrant(base, label) for label in "ab"]
    outcomes = {"a": [DIED, DIED], "b": [DIED, further, DIED, PREPARED]}
    found, _ = ran(entrants, outcomes, tmp_path)
    assert "died 2 times while it ran" in str(found["a"])
    assert found["b"] is None


def test_one_that_measures_another_s_checkpoints_waits_for_it(base, tmp_path) -> None:
    entrants = [entrant(base, "dense", like="oft"), entrant(base, "oft"), entrant(base, "x")]
    prepared = {label: [PREPARED] for label in ("dense", "oft", "x")}
    found, slots = ran(entrants, prepared, tmp_path)
    assert list(found) == ["oft", "x", "dense"]
    assert slots.seen[0] == ["oft", "x"]
    entrants = [entrant(base, "dense2", like="oft2"), entrant(base, "oft2")]
    found, _ = ran(entrants, {"oft2": [Outcome(failure="full disk")]}, tmp_path)
    assert found["dense2"] == "it measures the checkpoints of oft2, which failed."


def test_a_run_that_only_its_node_sees_is_no_run(base, tmp_path) -> None:
    alone = entrant(base, "a")
    (alone.folder / "manifest.json").unlink()
    found, _ = ran([alone], {"a": [PREPARED]}, tmp_path)
    assert "Do all nodes share this folder" in str(found["a"])
