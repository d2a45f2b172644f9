"""A killed and resumed training ends as an uninterrupted one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from backtrack.errors import RunError, UsageError
from backtrack.recipe import Recipe
from backtrack.run.directory import Run
from backtrack.train.trainers.resume import is_finished, newest_checkpoint
from backtrack.train.trainers.train import TrainingProgress, train
from tests.models import make_base

ROOT = Path(__file__).resolve().parents[2]
METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    # Dropout takes the random state along: forgetting it would show.
    "lora": {"kind": "lora", "r": 4, "lora_dropout": 0.2},
    "oft": {"kind": "oft", "oft_block_size": 8, "module_dropout": 0.1},
}


def start(recipe: Recipe, folder: Path) -> subprocess.Popen[bytes]:
    """Train in a process of its own."""
    file = folder / f"{recipe.name}.json"
    file.write_text(recipe.model_dump_json(), encoding="utf-8")
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    script = Path(__file__).with_name("train_in_process.py")
    return subprocess.Popen([sys.executable, str(script), str(file)], env=environment)


def kill_after(process: subprocess.Popen[bytes], index: Path, checkpoints: int) -> None:
    """SIGKILL once so many checkpoints are in the index, before the training ends."""
    deadline = time.monotonic() + 120
    while not index.exists() or index.read_text().count("\n") < checkpoints:
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline, "the training wrote no checkpoint in two minutes"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def weights_by_step(run: Run) -> dict[int, dict[str, str]]:
    """The digest of each weight file, which covers every bit of every tensor."""
    return {entry.step: entry.sha256 for entry in run.entries()}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory, base: Path, sums: Path) -> dict[str, Recipe]:
    """One recipe per method; two and a half epochs, so a resume falls inside an epoch."""
    output = tmp_path_factory.mktemp("killed")
    return {
        name: Recipe.model_validate(
            {
                "name": name,
                "base": str(base),
                "output": str(output),
                "method": method,
                "data": {"train": str(sums), "prompt": "{sum}", "completion": " {answer}"},
                "sft": {"max_steps": 25, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
                "trajectory": {"every_steps": 2},
            }
        )
        for name, method in METHODS.items()
    }


@pytest.fixture(scope="module")
def killed(recipes: dict[str, Recipe]) -> dict[str, Run]:
    """Runs of a full and a LoRA training killed midway, side by side."""
    folder = Path(recipes["full"].output)
    processes = {name: start(recipes[name], folder) for name in ("full", "lora")}
    try:
        for name, process in processes.items():
            kill_after(process, folder / name / "trajectory" / "index.jsonl", checkpoints=5)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return {name: Run.open(folder / name) for name in processes}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(
    method: str, recipes: dict[str, Recipe], killed: dict[str, Run], tmp_path: Path
) -> None:
    assert 5 <= len(killed[method].steps) < 12
    resumed = train(recipes[method], resume=True)
    straight = train(recipes[method].model_copy(update={"output": str(tmp_path)}))
    assert straight.steps == (*range(2, 25, 2), 25)
    assert weights_by_step(resumed) == weights_by_step(straight)


@pytest.mark.slow
def test_killed_oft_resumes_bit_for_bit(recipes: dict[str, Recipe], tmp_path: Path) -> None:
    recipe = recipes["oft"]
    process = start(recipe, tmp_path)
    kill_after(process, Path(recipe.output) / "oft" / "trajectory" / "index.jsonl", checkpoints=5)
    resumed = train(recipe, resume=True)
    straight = train(recipe.model_copy(update={"output": str(tmp_path)}))
    assert weights_by_step(resumed) == weights_by_step(straight)


@pytest.fixture(scope="module")
def short(recipes: dict[str, Recipe]) -> Recipe:
    sft = {**recipes["full"].sft, "max_steps": 7}
    return recipes["full"].model_copy(update={"name": "short", "sft": sft})


@pytest.fixture(scope="module")
def straight(short: Recipe) -> dict[int, dict[str, str]]:
    """The weights of a short training that is not interrupted."""
    return weights_by_step(train(short.model_copy(update={"name": "straight"})))


@pytest.fixture(scope="module")
def stopped(short: Recipe) -> Path:
    """A run of the short training, interrupted by Ctrl-C after its fifth step."""

    def press(progress: TrainingProgress) -> None:
        if progress.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(short, on_progress=press)
    return Path(short.output) / short.name


@pytest.fixture
def recipe(short: Recipe, stopped: Path, tmp_path: Path) -> Recipe:
    """The short recipe, with a stopped run of its own where it writes."""
    shutil.copytree(stopped, tmp_path / short.name)
    return short.model_copy(update={"output": str(tmp_path)})


def run_of(recipe: Recipe) -> Path:
    return Path(recipe.output) / recipe.name


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "torn", ["optimizer.pt", "model.safetensors", "trainer_state.json", "rng_state.pth"]
)
def test_a_half_written_trainer_checkpoint_is_skipped(recipe: Recipe, torn: str) -> None:
    trainer = run_of(recipe) / "trainer"
    assert newest_checkpoint(trainer) == trainer / "checkpoint-4"
    cut_in_half(trainer / "checkpoint-4" / torn)
    assert newest_checkpoint(trainer) == trainer / "checkpoint-3"


def test_resuming_from_an_older_trainer_checkpoint_gives_the_same_weights(
    recipe: Recipe, straight: dict[int, dict[str, str]]
) -> None:
    cut_in_half(run_of(recipe) / "trainer" / "checkpoint-4" / "optimizer.pt")
    assert weights_by_step(train(recipe, resume=True)) == straight


def test_a_run_without_a_trainer_checkpoint_restarts(
    recipe: Recipe, straight: dict[int, dict[str, str]]
) -> None:
    shutil.rmtree(run_of(recipe) / "trainer")
    assert weights_by_step(train(recipe, resume=True)) == straight


def test_what_a_killed_writer_left_is_ignored_and_deleted(
    recipe: Recipe, straight: dict[int, dict[str, str]]
) -> None:
    trajectory = run_of(recipe) / "trajectory"
    partial = trajectory / ".step-00000006.0badcafe.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    with (trajectory / "index.jsonl").open("a") as index:
        index.write('{"step": 6, "fold')
    assert Run.open(run_of(recipe)).steps == (2, 4)

    resumed = train(recipe, resume=True)

    assert weights_by_step(resumed) == straight
    assert not partial.exists()


def test_a_folder_half_created_before_a_kill_is_created_again(
    short: Recipe, tmp_path: Path
) -> None:
    (tmp_path / ".short.partial" / "run").mkdir(parents=True)
    (tmp_path / ".short.partial" / "run" / "recipe.yaml").touch()
    recipe = short.model_copy(update={"output": str(tmp_path)})
    assert train(recipe, resume=True).steps == (2, 4, 6, 7)
    assert [path.name for path in tmp_path.iterdir()] == ["short"]


def test_a_finished_run_is_returned_without_training(recipe: Recipe) -> None:
    run = train(recipe, resume=True)
    assert is_finished(run)
    reports: list[TrainingProgress] = []
    again = train(recipe, resume=True, on_progress=reports.append)
    assert weights_by_step(again) == weights_by_step(run)
    assert reports == []


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"sft": {"max_steps": 9}}, "sft.max_steps"),
        ({"seed": 1}, "seed"),
        ({"trajectory": {"every_steps": 3}}, "trajectory.every_steps"),
        ({"method": {"kind": "lora", "r": 4}}, "method.kind"),
    ],
)
def test_a_recipe_that_changed_is_not_resumed(
    recipe: Recipe, changed: dict[str, Any], key: str
) -> None:
    values = recipe.model_dump()
    for section, value in changed.items():
        inner = isinstance(value, dict) and section == "sft"
        values[section] = {**values[section], **value} if inner else value
    with pytest.raises(UsageError, match=f"the recipe's `{key}` .*Restore it to resume"):
        train(Recipe.model_validate(values), resume=True)


def test_what_is_measured_may_change_between_kill_and_resume(recipe: Recipe) -> None:
    changed = Recipe.model_validate({**recipe.model_dump(), "search": {"trials": 3}})
    assert train(changed, resume=True).steps == (2, 4, 6, 7)


def test_a_base_that_changed_is_not_resumed(recipe: Recipe, base: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=9)
    (other / "model.safetensors").rename(base / "model.safetensors.new")
    original = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors.new").replace(base / "model.safetensors")
    try:
        with pytest.raises(RunError, match="not the base this run was trained on"):
            train(recipe, resume=True)
    finally:
        (base / "model.safetensors").write_bytes(original)
