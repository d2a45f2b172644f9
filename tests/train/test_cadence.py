"""Which steps are saved by each cadence, and that a resumed training saves the same."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from backtrack.errors import UsageError
from backtrack.recipe import TrajectorySection
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.run.directory import Run
from backtrack.train.trajectory.cadence import ByDistance, log_spaced
from backtrack.train.trajectory.callback import TrajectoryCallback
from tests.models import load_whole
from tests.train.test_callback import (
    LINEAR,
    WeightRecorder,
    assert_same,
    model_in_memory,
    trainer_for,
)


def run_of_12_steps(folder: Path, model: Any = None, *, resume: int = 0, **settings: Any) -> Run:
    """Train 12 steps at a constant learning rate, saving by these settings."""
    callback = TrajectoryCallback(folder / "run", **settings)
    trainer = trainer_for(
        model or model_in_memory(), folder / "out", callback, max_steps=12, learning_rate=1e-3,
        lr_scheduler_type="constant", save_strategy="steps", save_steps=5,
    )  # fmt: skip
    checkpoint = str(folder / "out" / f"checkpoint-{resume}") if resume else None
    trainer.train(resume_from_checkpoint=checkpoint)
    return Run.open(folder / "run")


@pytest.mark.parametrize(("count", "last"), [(8, 1000), (5, 10_000), (40, 30), (2, 7), (3, 1)])
def test_log_steps_go_from_the_first_to_the_last(count: int, last: int) -> None:
    steps = sorted(log_spaced(count, last))
    assert (steps[0], steps[-1]) == (1, last)
    assert len(steps) <= count


def test_log_steps_are_even_unless_they_round_to_the_same_step() -> None:
    steps = sorted(step for step in log_spaced(9, 10**8))
    ratios = [b / a for a, b in itertools.pairwise(steps)]
    assert ratios == pytest.approx([10.0] * 8)


def test_log_checkpoints_of_a_training(tmp_path: Path) -> None:
    assert run_of_12_steps(tmp_path, log_checkpoints=4).steps == (1, 2, 5, 12)


def test_checkpoints_by_distance_are_as_far_apart_as_set(tmp_path: Path) -> None:
    run = run_of_12_steps(tmp_path, every_distance=0.02)
    assert 3 < len(run.steps) < 12
    assert (run.steps[0], run.steps[-1]) == (1, 12)
    for a, b in itertools.pairwise(run.steps[:-1]):
        old, new = read_checkpoint(run, a), read_checkpoint(run, b)
        moved = math.sqrt(sum(float((new[n] - old[n]).square().sum()) for n in new))
        norm = math.sqrt(sum(float(old[n].square().sum()) for n in old))
        assert 0.02 <= moved / norm < 0.05
    distances = [run.entry(step).distance or 0.0 for step in run.steps]
    assert distances == sorted(distances)
    assert distances[0] > 0


@pytest.mark.parametrize("settings", [{"every_distance": 0.02}, {"log_checkpoints": 6}])
@pytest.mark.parametrize("is_adapter", [False, True])
def test_a_resumed_training_saves_the_same_steps(
    tmp_path: Path, settings: dict[str, Any], is_adapter: bool
) -> None:
    def model() -> Any:
        plain = model_in_memory()
        torch.manual_seed(3)
        return get_peft_model(plain, LoraConfig(target_modules=LINEAR)) if is_adapter else plain

    first = run_of_12_steps(tmp_path, model(), **settings)
    before = {entry.step: entry.sha256 for entry in first.entries()}
    again = run_of_12_steps(tmp_path, model(), resume=5, **settings)
    assert {entry.step: entry.sha256 for entry in again.entries()} == before


def test_distance_is_measured_on_a_sample_of_large_models() -> None:
    start = {"w": torch.ones(1 << 22)}
    cadence = ByDistance(0.1, start, 0.0, None)
    assert not cadence.is_due(2, {"w": torch.full((1 << 22,), 1.09)})
    assert cadence.is_due(2, {"w": torch.full((1 << 22,), 1.11)})
    cadence.record_save({"w": torch.full((1 << 22,), 1.5)})
    assert cadence.distance == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("settings", "stored"),
    [
        ({}, torch.bfloat16),
        ({"dtype": "float32"}, torch.float32),
        ({"storage": "plain"}, torch.bfloat16),
    ],
)
def test_master_weights_are_stored_in_the_dtype_that_training_computes_in(
    tmp_path: Path, settings: dict[str, Any], stored: torch.dtype
) -> None:
    recorder, callback = WeightRecorder(), TrajectoryCallback(tmp_path / "run", 4, **settings)
    trainer_for(
        model_in_memory(), tmp_path / "out", callback, recorder, bf16=True, max_steps=4
    ).train()
    assert recorder.weights[4]["model.norm.weight"].dtype == torch.float32
    found = read_checkpoint(callback.run, 4)
    assert {tensor.dtype for tensor in found.values()} == {stored}
    assert_same(found, {name: recorder.weights[4][name].to(stored) for name in found})
    assert load_whole(callback.run, 4).dtype == stored
    is_plain = callback.run.entry(4).storage == "plain"
    assert is_plain == (settings.get("storage") == "plain")


def test_a_budget_thins_a_training_and_its_adapters_stay_plain(tmp_path: Path) -> None:
    model = get_peft_model(model_in_memory(), LoraConfig(target_modules=LINEAR))
    run = run_of_12_steps(tmp_path, model, every_steps=1, max_checkpoints=4)
    assert (run.steps[0], run.steps[-1], len(run.steps)) == (1, 12, 4)
    assert {entry.storage for entry in run.entries()} == {"plain"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_steps": 5, "log_checkpoints": 8}, "give one of `every_steps` and `log_check"),
        ({"every_step": 5}, "every_step"),
        ({"max_checkpoints": 1}, "max_checkpoints"),
        ({"storage": "zip"}, "storage"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrajectoryCallback("run", **settings)
    with pytest.raises(ValueError, match=message.partition(" ")[0]):
        TrajectorySection.model_validate(settings)
