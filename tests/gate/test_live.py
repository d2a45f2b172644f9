"""Points of runs, models and lm-eval's results against each other, on a tiny real model."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from backtrack import cli
from backtrack.errors import RunError, UsageError
from backtrack.gate import gate
from backtrack.gate.live import ModelSide, PointSide
from backtrack.gate.lm_eval_results import LmEvalSide
from backtrack.gate.opening import kind_of, point_of, split_name
from backtrack.gate.recorded import read_measurements
from backtrack.point import Point
from backtrack.recipe import Recipe
from backtrack.records.gate import GateBound, GateResult
from backtrack.run.directory import Run
from backtrack.selection.measure.evaluator import Evaluator
from tests.models import make_base, make_peft_run

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("study_in_memory"),
]

LOSS = GateBound(kind="max_drop", name="words", number=0.5)
NUM_ITEMS = 256


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, a run of it, and two files of examples."""
    folder = tmp_path_factory.mktemp("live")
    base = make_base(folder / "base")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
    make_peft_run(folder / "run", base, config)
    for name in ("sums", "words"):
        rows = [{"prompt": f"{name} {i}:", "completion": f" {i * 7 % 11}"} for i in range(600)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def recipe(place: Path) -> Recipe:
    return Recipe.model_validate({
        "name": "run",
        "base": str(place / "base"),
        "objectives": [
            {"kind": "examples", "role": role, "score": "nll", "path": f"{place / name}.jsonl"}
            for name, role in (("sums", "target"), ("words", "general"))
        ],
        "search": {"items": {"selection": 10, "report": NUM_ITEMS}, "batch_size": 16},
        "placement": {"device": "cpu"},
    })  # fmt: skip


@pytest.fixture
def evaluator(place: Path, recipe: Recipe, tmp_path: Path) -> Evaluator:
    """Of a run in which nothing is measured."""
    return Evaluator(
        Run.open(shutil.copytree(place / "run", tmp_path / "run")), recipe, None, None
    )


def num_recorded(evaluator: Evaluator, point: Point) -> int:
    lines = evaluator.run.measurements()
    return sum(len(m.item_ids) for m in lines if m.point.canonical == point.canonical)


def test_two_points_of_a_run_are_measured_part_by_part_and_recorded_once(evaluator) -> None:
    final = evaluator.run.final
    sides = PointSide(evaluator, final), PointSide(evaluator, Point.base())
    found = gate(*sides, [LOSS])
    assert found.outcome == "passes"
    assert found.items_compared == 32
    assert num_recorded(evaluator, final) == num_recorded(evaluator, Point.base()) == 32
    again = Evaluator(Run.open(evaluator.run.path), evaluator.recipe, None, None)
    assert gate(PointSide(again, final), PointSide(again, Point.base()), [LOSS]) == found
    assert num_recorded(again, final) == 32
    assert {m.split for m in again.run.measurements()} == {"report"}


def test_what_a_look_needs_is_measured_at_once(evaluator) -> None:
    sides = [PointSide(evaluator, point) for point in (evaluator.run.final, Point.base())]
    words, sums = ([side.objectives[name] for side in sides] for name in ("words", "sums"))
    ids = words[0].item_ids[:8]
    other = next(i for i in words[0].possible if i not in words[0].item_ids)
    for each in words:
        each.expect(ids)
    words[1].expect([other])
    scores = sums[0].scores(sums[0].item_ids[:8])
    assert len(scores) == 8
    assert [len(m.item_ids) for m in evaluator.recorded] == [8, 8, 8]
    first = [words[0].scores(ids), words[1].scores(ids), words[1].scores([other])]
    assert len(evaluator.recorded) == 3, "what was expected is not measured again"
    alone = Evaluator(evaluator.run, evaluator.recipe, None, None)
    assert words[0].scores(ids) == first[0]
    assert PointSide(alone, Point.base()).objectives["words"].scores([other]) == pytest.approx(
        first[2], rel=1e-5
    )


def test_points_whose_items_are_all_recorded_need_no_model(evaluator, tmp_path) -> None:
    final = evaluator.run.final
    for name in ("sums", "words"):
        tight = GateBound(kind="min_gain", name=name, number=0.0)
        for _ in range(3):  # later looks measure the rest
            gate(PointSide(evaluator, final), PointSide(evaluator, Point.base()), [tight])
    for side in (PointSide(evaluator, final), PointSide(evaluator, Point.base())):
        for scores in side.objectives.values():
            scores.scores(scores.item_ids)
    bare = Evaluator(Run.open(evaluator.run.path), evaluator.recipe, None, None)
    sides = PointSide(bare, final), PointSide(bare, Point.base())
    found = gate(*sides, [LOSS])
    assert not bare.is_built
    assert (found.num_looks, found.items_compared) == (1, NUM_ITEMS)
    file = evaluator.run.path / "measurements.jsonl"
    recorded = [read_measurements(file, point) for point in (final, Point.base())]
    assert gate(recorded[0], recorded[1], [LOSS]).bounds == found.bounds
    with pytest.raises(UsageError, match=r"has several points: name one, as .*@POINT.*20:1, base"):
        read_measurements(file, None)
    with pytest.raises(UsageError, match="has no step 20 alpha"):
        read_measurements(file, Point(step=20, alpha=0.25))
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(RunError, match="has no measurement"):
        read_measurements(empty, None)


def test_a_model_is_the_base_of_a_run_that_was_trained_from_it(evaluator, place, recipe) -> None:
    model = ModelSide(str(place / "base"), recipe)
    found = gate(PointSide(evaluator, Point.base()), model, [LOSS])
    assert found.bounds[0].gain.estimate == pytest.approx(0, abs=1e-6)
    assert found.incumbent == str(place / "base")


def test_another_recipe_is_refused_with_the_first_prompt_that_differs(
    evaluator, place, recipe
) -> None:
    objectives = [o.model_copy(update={"prompt": "Q {prompt}"}) for o in recipe.objectives]
    other = ModelSide(
        str(place / "base"), recipe.model_copy(update={"objectives": tuple(objectives)})
    )
    with pytest.raises(UsageError, match=r"prompts or settings differ: words/.*'words .*'Q words"):
        gate(PointSide(evaluator, Point.base()), other, [LOSS])


@pytest.mark.slow  # lm-eval's index of tasks
def test_lm_eval_and_we_score_the_same_model_alike(evaluated) -> None:
    settings = {"kind": "lm_eval", "metric": "acc", "include_path": str(evaluated.tasks)}
    recipe = Recipe.model_validate({
        "name": "toy", "base": str(evaluated.models[0]),
        "objectives": [{**settings, "role": "target", "task": "sums"},
                       {**settings, "role": "general", "task": "words"}],
        "placement": {"device": "cpu"},
    })  # fmt: skip
    live = ModelSide(str(evaluated.models[0]), recipe)
    theirs = LmEvalSide(evaluated.candidate, sections=recipe.objectives)
    bounds = [GateBound(kind="max_drop", name=n, number=20) for n in ("sums", "words")]
    found = gate(live, theirs, bounds)
    assert [each.gain.estimate for each in found.bounds] == [0.0, 0.0]
    assert found.items_available == 80, "all of the file's items, not the report items alone"


def test_an_adapter_is_adopted_and_compared_with_the_model_it_was_trained_from(
    place, recipe, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json(exclude_defaults=True))
    adapter = Run.open(place / "run").folder(20)
    with pytest.raises(SystemExit) as ended:
        cli.main([
            "gate", str(adapter), "--against", str(place / "base"), "--recipe", "recipe.yaml",
            "--base", str(place / "base"), "--max-general-drop", "5", "--device", "cpu",
            "--limit", "120", "--json",
        ])  # fmt: skip
    found = GateResult.model_validate_json(capsys.readouterr().out)
    assert (ended.value.code or 0, found.outcome, found.items_available) == (0, "passes", 60)
    assert found.candidate.startswith("runs/")


@pytest.mark.parametrize(
    ("text", "name", "point"),
    [("runs/a@base", "runs/a", "base"), ("a@240:0.6", "a", "240:0.6"), ("a@0.5", "a", "0.5"),
     ("owner/model", "owner/model", ""), ("me@work/model", "me@work/model", "")],
)  # fmt: skip
def test_a_point_is_named_after_an_at_sign(text, name, point) -> None:
    assert split_name(text) == (name, point)


def test_a_side_is_known_by_what_lies_there(place, evaluated, tmp_path) -> None:
    kinds: dict[str, Any] = {
        "run": place / "run",
        "model": place / "base",
        "lm_eval": evaluated.incumbent,
        "measurements": place / "words.jsonl",
    }
    assert {kind: kind_of(str(path)) for kind, path in kinds.items()} == {k: k for k in kinds}
    adapter = Run.open(place / "run").folder(20)
    assert kind_of(str(adapter)) == "run", "adopted on the fly"
    assert kind_of("owner/model") == "model"
    with pytest.raises(UsageError, match="there is no"):
        kind_of(str(tmp_path / "nowhere"))
    (tmp_path / "results.json").touch()
    with pytest.raises(UsageError, match=r"for lm-eval name the folder with samples_\*"):
        kind_of(str(tmp_path / "results.json"))


def test_a_run_without_a_choice_is_its_last_checkpoint(place) -> None:
    run = Run.open(place / "run")
    named = partial(point_of, run)
    assert named("") == named("final") == Point(step=20)
    assert (named("base"), named("10:0.5")) == (Point.base(), Point(step=10, alpha=0.5))
    assert named("0.25") == Point(step=20, alpha=0.25)
    with pytest.raises(UsageError, match="has no choice yet"):
        named("chosen")
    with pytest.raises(UsageError, match="is not a point"):
        named("1:x")
