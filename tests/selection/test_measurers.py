"""Who measures: what is carried to another machine, and what is said where Ray is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from peft import LoraConfig

from backtrack.errors import UsageError
from backtrack.point import Point
from backtrack.recipe import ClusterSection, Recipe
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.selection.measurers.executor import InProcess
from backtrack.selection.measurers.measurer import Measurer, Request
from backtrack.selection.measurers.run_copy import files_to_carry, is_at, run_digest, write_copy
from backtrack.selection.search.driver import search
from tests.models import make_base, make_peft_run
from tests.selection.fakes import FakeEngine, make_recipe, make_run, pair

pytestmark = pytest.mark.usefixtures("study_in_memory")


def test_a_carried_run_has_the_same_checkpoints_bit_for_bit(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    run = make_peft_run(tmp_path / "run", base, LoraConfig(task_type="CAUSAL_LM", r=2))
    (run.path / "measurements.jsonl").write_text("")
    contents = {name: (run.path / name).read_bytes() for name in files_to_carry(run)}
    copy = write_copy(tmp_path / "copy", contents)
    assert is_at(copy.path, run_digest(run.path))
    assert not (copy.path / "measurements.jsonl").exists()
    assert copy.steps == run.steps
    for step in run.steps:
        expected = read_checkpoint(run, step)
        found = read_checkpoint(copy, step)
        assert found.keys() == expected.keys()
        assert all(found[name].equal(tensor) for name, tensor in expected.items())


def test_a_run_that_was_trained_on_is_not_the_one_that_was_sent(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other", steps=(10, 20))
    digest = run_digest(run.path)
    assert is_at(run.path, digest)
    assert not is_at(other.path, digest)
    assert not is_at(tmp_path / "nowhere", digest)


def test_a_copy_is_not_written_outside_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside"):
        write_copy(tmp_path / "copy", {"../escaped": b""})
    assert not (tmp_path / "escaped").exists()


def test_several_actors_without_ray_are_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    objectives = [
        {"kind": "python", "role": role, "function": "tests.selection.watched:likely",
         "name": role, "items": 20}
        for role in ("target", "general")
    ]  # fmt: skip
    recipe = Recipe.model_validate({"name": "toy", "base": "toy", "objectives": objectives})
    run = make_run(tmp_path / "run", recipe)
    with pytest.raises(UsageError, match=r"pip install 'backtrack-llm\[ray\]'"):
        search(run, cluster=ClusterSection(actors=2))


def test_a_recipe_of_before_actors_is_read() -> None:
    search_section = {"workers": 3, "patience_seconds": 60, "trials": 1}
    recipe = Recipe.model_validate({"name": "toy", "base": "toy", "search": search_section})
    assert (recipe.cluster.actors, recipe.search.trials) == (3, 1)


def test_points_of_which_the_same_is_asked_are_expected_together() -> None:
    engine = Expecting()
    measurer = Measurer(None, None, engine, pair())  # type: ignore[arg-type]
    points = [Point(step=40, alpha=alpha) for alpha in (0.25, 0.5, 0.75)]
    ids = [("sums/00001",), ("sums/00001",), ("sums/00002",)]
    requests = [
        Request(point, "sums", asked, "selection", "anchor", "", "")
        for point, asked in zip(points, ids, strict=True)
    ]
    assert len(list(InProcess(measurer).measured(requests, lambda _: None))) == 3
    assert engine.expected == [points[:2], points[1:2], points[2:]]


class Expecting(FakeEngine):
    """Lists what it was told to expect."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: list[list[Point]] = []

    def expect(self, points: list[Point]) -> None:  # type: ignore[override]
        self.expected.append(points)


def test_a_search_that_stops_inside_a_round_ends_where_an_uninterrupted_one_does(
    tmp_path: Path,
) -> None:
    recipe = make_recipe(trials=4, round_size=3, sampler="tpe")
    whole = search(make_run(tmp_path / "whole", recipe), placement=FakeEngine(), objectives=pair())  # type: ignore[arg-type]
    run = make_run(tmp_path / "broken", recipe)
    target, general = pair()
    general.breaks_at = len([m for m in whole if m.origin == "anchor"]) // 2
    with pytest.raises(KeyboardInterrupt):
        search(run, placement=FakeEngine(), objectives=(target, general))  # type: ignore[arg-type]
    again = search(run, placement=FakeEngine(), objectives=pair())  # type: ignore[arg-type]
    assert [(m.point, m.item_ids, m.scores) for m in again] == [
        (m.point, m.item_ids, m.scores) for m in whole
    ]
