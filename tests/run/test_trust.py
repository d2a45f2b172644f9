"""A run from elsewhere runs its code only if the user says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backtrack.cli import app
from backtrack.cli.targets import open_run
from backtrack.errors import UsageError
from backtrack.recipe import Recipe
from backtrack.records import BaseModelReference, Manifest, Method
from backtrack.run.directory import Run
from backtrack.run.trust import code_of_recipe, require_allowed
from backtrack.selection.measure.evaluator import Evaluator


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that somebody else made: what it may run is not noted among this user's."""
    objective = {"kind": "python", "function": "scores:exact", "items": 4}
    task = {"kind": "lm_eval", "task": "own", "metric": "acc", "include_path": "tasks"}
    recipe = Recipe.model_validate(
        {
            "name": "theirs",
            "base": {"model": "org/model"},
            "objectives": [
                {**objective, "role": "target", "name": "a"},
                {**task, "role": "general", "name": "b"},
            ],
        }
    )
    base = BaseModelReference(model="org/model", trust_remote_code=True)
    manifest = Manifest(name="theirs", base=base, method=Method(kind="full"), created="2026")
    made = Run.create(tmp_path / "theirs", manifest, recipe)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return made


def test_each_piece_of_code_is_named_and_refused(run: Run) -> None:
    with pytest.raises(UsageError, match=r"org/model.*scores:exact.*tasks in .*--trust-code"):
        open_run(str(run.path), None, None)


def test_a_yes_is_noted_for_this_run_and_this_code(run: Run) -> None:
    open_run(str(run.path), None, None, may_run_code=True)
    open_run(str(run.path), None, None)
    path = run.path / "recipe.resolved.json"
    path.write_text(path.read_text().replace("scores:exact", "scores:other"))
    with pytest.raises(UsageError, match="would run the function scores:other"):
        open_run(str(run.path), None, None)


def test_a_run_made_here_is_not_asked_about(run: Run, tmp_path: Path) -> None:
    Run.create(tmp_path / "mine", run.manifest, run.recipe)
    open_run(str(tmp_path / "mine"), None, None)


def test_a_recipe_of_ones_own_does_not_allow_the_code_of_the_base(
    run: Run, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\nbase: {model: org/model}\n")
    with pytest.raises(UsageError, match=r"would run the code in the repository of org/model\."):
        open_run(str(run.path), None, recipe)


def test_a_report_is_drawn_without_a_yes(run: Run) -> None:
    open_run(str(run.path), None, None, may_run_code=None)


def test_an_arena_asks_before_it_goes_on_with_runs_from_elsewhere(
    run: Run, tmp_path: Path
) -> None:
    recipe = tmp_path / "arena.yaml"
    recipe.write_text(
        f"name: small\noutput: {tmp_path}\nbase: org/model\n"
        "entrants: [{name: theirs, run: elsewhere}]\n"
    )
    (tmp_path / "small" / "runs").mkdir(parents=True)
    run.path.rename(tmp_path / "small" / "runs" / "theirs")
    with pytest.raises(UsageError, match=r"small/runs/theirs was not made here.*--trust-code"):
        app(args=["arena", str(recipe)], standalone_mode=False)
    app(args=["arena", str(recipe), "--trust-code"], standalone_mode=False)
    app(args=["arena", str(recipe)], standalone_mode=False)


def test_nothing_is_noted_for_runs_without_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    base = BaseModelReference(model="org/model")
    manifest = Manifest(name="plain", base=base, method=Method(kind="full"), created="2026")
    Run.create(tmp_path / "run", manifest)
    open_run(str(tmp_path / "run"), None, None)
    assert not (tmp_path / "state").exists()


def test_a_recipe_that_is_given_in_python_is_its_users_own(run: Run) -> None:
    code = code_of_recipe(run.recipe)
    with pytest.raises(UsageError):
        require_allowed(run.manifest, code, run.path)
    for _ in range(2):
        Evaluator(run, run.recipe, None, None)
    require_allowed(run.manifest, code, run.path)
    state = Path(os.environ["XDG_STATE_HOME"]) / "backtrack" / "allowed-code.jsonl"
    assert len(state.read_text().splitlines()) == len(code)
