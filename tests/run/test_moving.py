"""A run is moved, alone or with what it names, and still finds its base, checkpoints and data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from backtrack.errors import RunError
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.recipe import ChoosingRecipe, load_recipe
from backtrack.records.places import Places
from backtrack.run.adopt import adopt
from backtrack.run.adoption.rebasing import rebase
from backtrack.run.checkpoint_reader import base_folder, read_checkpoint
from backtrack.run.directory import Run
from tests.models import jitter, make_base, make_manifest, make_peft_run

pytestmark = pytest.mark.filterwarnings("ignore")

LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4)
RECIPE = """
name: mine
base: base
objectives:
  - {kind: examples, role: target, path: data/sums.jsonl, score: nll}
  - {kind: examples, role: general, path: words.jsonl, score: nll}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project: a base, a run of it with a recipe, an adopted run, their checkpoints and data."""
    project = tmp_path_factory.mktemp("moving") / "project"
    base = make_base(project / "base")
    (project / "data").mkdir()
    for name in ("data/sums.jsonl", "words.jsonl"):
        rows = [{"prompt": f"{i}:", "completion": f" {i * 7 % 11}"} for i in range(8)]
        (project / name).write_text("\n".join(map(json.dumps, rows)))
    (project / "recipe.yaml").write_text(RECIPE)
    run = make_peft_run(project / "runs" / "mine", base, LORA)
    run.choose_by(ChoosingRecipe(recipe=load_recipe(project / "recipe.yaml")))
    run.save_choosing()
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LORA)
    for step in (5, 10):
        jitter(model, 0.02, seed=step)
        model.save_pretrained(str(project / "outputs" / f"checkpoint-{step}"))
    adopt(project / "outputs", runs=project / "runs")
    return project


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy of the project that knows nothing of the original's folder."""
    shutil.copytree(made, tmp_path / "here" / "project")
    for name in ("mine", "outputs"):
        _forget(tmp_path / "here" / "project" / "runs" / name)
    return tmp_path / "here" / "project"


def _forget(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["folders"] = [str(run)]
    (run / "manifest.json").write_text(json.dumps(manifest))


def _moved(folder: Path, to: Path) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    return folder.rename(to)


def _paths(run: Run) -> list[str]:
    """Every absolute path that an opened run holds."""
    named = [run.base.model, *(entry.folder for entry in run.entries())]
    if run.choosing is not None:
        recipe = run.choosing.recipe
        named += [recipe.base.model, *(str(getattr(o, "path", "")) for o in recipe.objectives)]
    return [*named, run.manifest.source or run.base.model]


@pytest.mark.parametrize("name", ["mine", "outputs"])
def test_a_run_moved_with_its_base_checkpoints_and_data_names_them_where_they_are(
    project: Path, tmp_path: Path, name: str
) -> None:
    there = _moved(project, tmp_path / "there" / "deeper" / "renamed")
    run = Run.open(there / "runs" / name)
    found = [path for path in _paths(run) if Path(path).is_absolute()]
    assert len(found) >= 4
    for path in found:
        assert Path(path).is_relative_to(there), path
        assert Path(path).exists()
    Placement(run).place(Point(step=run.steps[0], alpha=0.5))


@pytest.mark.parametrize("name", ["mine", "outputs"])
def test_a_run_moved_alone_finds_what_stayed(project: Path, tmp_path: Path, name: str) -> None:
    run = Run.open(_moved(project / "runs" / name, tmp_path / "archive" / "x" / "y" / "z" / name))
    for path in _paths(run):
        if Path(path).is_absolute():
            assert Path(path).is_relative_to(project), path
            assert Path(path).exists()
    Placement(run).place(Point(step=run.steps[0], alpha=0.5))


def test_what_a_moved_run_writes_is_found_after_another_move(
    project: Path, tmp_path: Path
) -> None:
    run = Run.open(_moved(project / "runs" / "mine", tmp_path / "archive" / "one"))
    rebase(run, str(project / "base"))
    run = Run.open(_moved(run.path, tmp_path / "far" / "away" / "from" / "all" / "two"))
    assert run.base.model == str(project / "base")
    assert run.choosing is not None
    assert all(Path(getattr(o, "path", "")).exists() for o in run.choosing.recipe.objectives)
    found = [Path(folder).name for folder in run.manifest.folders]
    assert found == ["mine", "one"]


def test_files_of_a_run_name_what_lies_beside_it_relatively(project: Path) -> None:
    mine, outputs = project / "runs" / "mine", project / "runs" / "outputs"
    manifest = json.loads((mine / "manifest.json").read_text())
    assert manifest["base"]["model"] == "../../base"
    recipe = json.loads((mine / "recipe.choosing.json").read_text())["recipe"]
    assert recipe["base"]["model"] == "../../base"
    assert [o["path"] for o in recipe["objectives"]] == [
        "../../data/sums.jsonl",
        "../../words.jsonl",
    ]
    assert json.loads((outputs / "manifest.json").read_text())["source"] == "../../outputs"
    lines = (outputs / "trajectory" / "index.jsonl").read_text().splitlines()
    folders = [json.loads(line)["folder"] for line in lines]
    assert folders == ["../../../outputs/checkpoint-5", "../../../outputs/checkpoint-10"]


def test_a_base_written_into_its_run_moves_with_it(project: Path, tmp_path: Path) -> None:
    run = project / "runs" / "mine"
    shutil.copytree(project / "base", run / "base")
    inside = Run.open(run)
    inside.write_manifest(make_manifest(run / "base", "lora"))
    assert json.loads((run / "manifest.json").read_text())["base"]["model"] == "./base"
    there = _moved(run, tmp_path / "elsewhere")
    assert Run.open(there).base.model == str(there / "base")


def test_a_manifest_with_absolute_paths_still_opens(project: Path, tmp_path: Path) -> None:
    path = project / "runs" / "mine" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["folders"]
    manifest["base"]["model"] = str(project / "base")
    path.write_text(json.dumps(manifest))
    there = _moved(project / "runs" / "mine", tmp_path / "elsewhere")
    assert Run.open(there).base.model == str(project / "base")


def test_a_base_that_has_moved_is_asked_for_and_recorded(project: Path, tmp_path: Path) -> None:
    run = Run.open(project / "runs" / "mine")
    before = read_checkpoint(run, 10)
    there = _moved(project / "base", tmp_path / "models" / "base")
    with pytest.raises(RunError, match="no folder") as refused:
        base_folder(run.base)
    assert f"backtrack rebase {run.path} --base" in str(refused.value)
    assert rebase(run, str(there)), "the tensors were compared"
    again = Run.open(run.path)
    assert again.base.model == str(there)
    assert again.choosing is not None
    assert again.choosing.recipe.base.model == str(there)
    assert all(torch.equal(before[name], t) for name, t in read_checkpoint(again, 10).items())
    Placement(again).place(Point(step=10, alpha=0.5))


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_base_is_refused_by_its_tensors_and_nothing_is_written(
    project: Path, tmp_path: Path
) -> None:
    other = make_base(tmp_path / "other", seed=1)
    run = Run.open(project / "runs" / "mine")
    before = _contents(run.path)
    with pytest.raises(RunError, match=r"'model\.embed_tokens\.weight'") as refused:
        rebase(run, str(other))
    assert "tensors differ" in str(refused.value)
    with pytest.raises(RunError, match="no folder"):
        rebase(run, str(tmp_path / "absent"))
    assert _contents(run.path) == before


def test_a_run_without_a_fingerprint_takes_one_and_says_that_nothing_was_compared(
    project: Path, tmp_path: Path
) -> None:
    run = Run.open(project / "runs" / "mine")
    bare = run.manifest.base.model_copy(update={"fingerprint": {}})
    run.write_manifest(run.manifest.model_copy(update={"base": bare}))
    assert not rebase(run, str(project / "base"))
    assert rebase(Run.open(run.path), str(project / "base"))


def test_checkpoints_that_have_moved_are_adopted_into_the_same_run(
    project: Path, tmp_path: Path
) -> None:
    path = project / "runs" / "outputs"
    measured = path / "measurements.jsonl"
    measured.write_text("")
    _moved(project / "outputs", tmp_path / "kept" / "outputs")
    with pytest.raises(RunError, match="is missing"):
        Run.open(path).folder(5)
    run = adopt(tmp_path / "kept" / "outputs", runs=project / "runs")
    assert run.path == path
    assert run.folder(5) == tmp_path / "kept" / "outputs" / "checkpoint-5"
    assert Run.open(path).folder(10) == tmp_path / "kept" / "outputs" / "checkpoint-10"
    other = tmp_path / "other" / "outputs"
    shutil.copytree(tmp_path / "kept" / "outputs" / "checkpoint-5", other / "checkpoint-5")
    with pytest.raises(RunError, match="--name"):
        adopt(other, runs=project / "runs")


def test_a_base_named_wrongly_is_named_again_until_something_is_measured(
    project: Path, tmp_path: Path
) -> None:
    other = make_base(tmp_path / "other", seed=1)
    runs = tmp_path / "runs"
    adopt(project / "outputs", base=str(other), runs=runs)
    run = adopt(project / "outputs", base=str(project / "base"), runs=runs)
    assert Run.open(run.path).base.model == str(project / "base")
    (run.path / "measurements.jsonl").write_text("")
    with pytest.raises(RunError, match="measured with another base"):
        adopt(project / "outputs", base=str(other), runs=runs)


def test_adopting_again_needs_no_base_named_twice(project: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(project / "base")
    jitter(model, 0.02, seed=1, only_trainable=False)
    model.save_pretrained(tmp_path / "whole" / "checkpoint-5")
    first = adopt(tmp_path / "whole", base=str(project / "base"), runs=tmp_path / "runs")
    again = adopt(tmp_path / "whole", runs=tmp_path / "runs")
    assert again.manifest == first.manifest


def test_files_of_the_package_are_named_as_such() -> None:
    places = Places((Path("/a/runs/mine"),))
    assets = Path(__file__).resolve().parents[2] / "backtrack" / "assets"
    assert places.written(str(assets / "demo" / "model")) == "embedded:demo/model"
    assert places.read("embedded:demo/model") == str(assets / "demo" / "model")
    gone = "/gone/lib/site-packages/backtrack/assets/demo/model"
    assert places.read(gone) == str(assets / "demo" / "model")
    assert places.read("/gone/backtrack/assets/none") == "/gone/backtrack/assets/none"


def test_names_of_the_hub_and_far_paths_are_written_as_they_are() -> None:
    places = Places((Path("/a/runs/mine"),))
    for text in ("Qwen/Qwen2.5-7B", "/b/base", "gsm8k"):
        assert places.written(text) == text
        assert places.read(text) == text
