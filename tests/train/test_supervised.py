"""What users of TRL expect of SFT, together with a trajectory."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from backtrack.errors import RunError, UsageError
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.train.trainers.build import build_trainer
from backtrack.train.trainers.resume import newest_checkpoint, read_end
from backtrack.train.trainers.train import TrainingProgress, train
from tests.models import make_base, make_tokenizer
from tests.train.conftest import MakeRecipe

LORA = {"kind": "lora", "r": 4}
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def history(run: Any) -> list[dict[str, Any]]:
    checkpoint = newest_checkpoint(run.path / "trainer")
    assert checkpoint is not None
    lines: list[dict[str, Any]] = json.loads((checkpoint / "trainer_state.json").read_text())[
        "log_history"
    ]
    return lines


def test_only_what_the_assistant_says_is_learned(
    make_recipe: MakeRecipe, sums: Path, tmp_path: Path
) -> None:
    chatty = make_base(tmp_path / "chat")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(chatty)
    data = {
        "train": str(sums), "prompt": "{sum}", "completion": "{answer}", "chat": True,
        "system": "Add.",
    }  # fmt: skip
    recipe = make_recipe(base=str(chatty), data=data)
    trainer = build_trainer(recipe, tmp_path / "unused")
    batch = trainer.data_collator([trainer.train_dataset[3]])
    learned = batch["input_ids"][0][batch["labels"][0] != -100]
    text = str(tokenizer.decode(batch["input_ids"][0]))
    assert text.startswith("system: Add.\nuser: 3 + 4 =\nassistant: 7")
    assert str(tokenizer.decode(learned)).strip() == "7"
    assert train(recipe).steps == (3, 6, 7)


@pytest.mark.parametrize(
    ("method", "sft"),
    [
        (LORA, {"packing": True, "max_length": 32, "packing_strategy": "wrapped"}),
        ({"kind": "full"}, {"gradient_accumulation_steps": 3, "gradient_checkpointing": True}),
        (LORA, {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}),
        (LORA, {"bf16": True, "use_cpu": True, "optim": "adafactor"}),
        ({"kind": "full"}, {"bf16": True, "use_cpu": True, "neftune_noise_alpha": 1.0}),
    ],
    ids=["packing", "accumulation", "checkpointing", "bf16", "bf16-full"],
)
def test_settings_of_trl_work_with_a_trajectory(
    make_recipe: MakeRecipe, method: dict[str, Any], sft: dict[str, Any]
) -> None:
    run = train(make_recipe(method=method, sft={**sft, "max_steps": 4}))
    assert run.steps == (3, 4)
    dtypes = {tensor.dtype for tensor in read_checkpoint(run, 4).values()}
    is_half = sft.get("bf16") and method["kind"] == "full"
    assert dtypes == {torch.bfloat16 if is_half else torch.float32}
    placement = Placement(run, device="cpu")
    placement.place(Point(step=4, alpha=0.5))
    placement.place(Point.base())


def test_other_ends_of_answers_are_kept_for_the_readers_of_scores(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    base, tokenizer = make_base(tmp_path / "questioning"), make_tokenizer()
    tokenizer.eos_token = "?"
    tokenizer.save_pretrained(base)
    run = train(make_recipe(method=LORA, base=str(base), sft={"max_steps": 1}))
    (note,) = run.manifest.notes
    assert note.startswith("An answer ends at </s>, and also at ?,")


def test_evaluation_is_logged_and_stops_a_training_that_no_longer_improves(
    make_recipe: MakeRecipe, sums: Path
) -> None:
    data = {
        "train": str(sums), "split": "train[8:]", "prompt": "{sum}", "completion": " {answer}",
        "eval_split": "train[:8]",
    }  # fmt: skip
    sft = {"max_steps": 20, "eval_steps": 2, "learning_rate": 0.3, "lr_scheduler_type": "constant"}
    run = train(make_recipe(method=LORA, data=data, sft=sft, early_stop={"patience": 2}))
    losses = [line["eval_loss"] for line in history(run) if "eval_loss" in line]
    end = read_end(run)
    assert end is not None
    assert end.reason == "eval_loss stopped improving"
    assert 2 * len(losses) == end.step == run.steps[-1] < 20
    assert min(losses[-2:]) >= min(losses[:-2])
    # A run that was stopped early is finished: resuming takes no step.
    again = make_recipe(method=LORA, data=data, sft=sft, early_stop={"patience": 2})
    assert train(again, resume=True).steps == run.steps


def test_an_unknown_metric_is_named_with_the_logged_ones(
    make_recipe: MakeRecipe, sums: Path
) -> None:
    data = {"train": str(sums), "prompt": "{sum}", "completion": " {answer}"}
    data |= {"split": "train[8:]", "eval_split": "train[:8]"}
    recipe = make_recipe(
        method=LORA,
        data=data,
        sft={"max_steps": 2, "eval_steps": 1},
        early_stop={"metric": "eval_rouge"},
    )
    with pytest.raises(RunError, match=r"no 'eval_rouge' among .* There are: eval_loss, "):
        train(recipe)


def test_the_seed_determines_the_data_order(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def order(seed: int) -> list[list[int]]:
        trainer = build_trainer(make_recipe(method=LORA, seed=seed), tmp_path)
        return [
            batch["input_ids"][:, :6].flatten().tolist()
            for batch in trainer.get_train_dataloader()
        ]

    assert order(0) == order(0)
    assert order(0) != order(1)


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_the_trajectory_size_is_reported_beside_the_loss(
    make_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tracker: str,
) -> None:
    if find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "logs"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = train(make_recipe(method=LORA, sft={"report_to": tracker, "project": "told"}))
    assert run.steps == (3, 6, 7)
    if tracker == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "logs"))
        events.Reload()
        reported = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        assert [event.step for event in reported["train/loss"]] == list(range(1, 8))
        counts = reported["train/backtrack/checkpoints"]
        assert [event.value for event in counts] == sorted({event.value for event in counts})
    if tracker == "trackio":
        logged = in_trackio("told")
        counts = [figures.get("train/backtrack/checkpoints") for figures in logged]
        assert sum("train/loss" in figures for figures in logged) == 7
        assert [count for count in counts if count is not None] == [1, 2, 3]
    else:
        assert any((tmp_path / "logs").rglob("*"))


def in_trackio(project: str) -> list[dict[str, float]]:
    """The logged metrics from trackio's database."""
    database = Path(os.environ["TRACKIO_DIR"]) / f"{project}.db"
    with closing(sqlite3.connect(database)) as connection:
        return [json.loads(row[0]) for row in connection.execute("SELECT metrics FROM metrics")]


def test_a_tracker_that_is_not_installed_is_named(make_recipe: MakeRecipe) -> None:
    if find_spec("swanlab") is not None:
        pytest.skip("this tracker is installed")
    with pytest.raises(UsageError, match=r"swanlab to be installed"):
        train(make_recipe(sft={"report_to": "swanlab"}))


def test_progress_reports_the_loss_and_no_reward(make_recipe: MakeRecipe) -> None:
    reports: list[TrainingProgress] = []
    train(make_recipe(method=LORA, sft={"max_steps": 2}), on_progress=reports.append)
    assert reports[-1].loss is not None
    assert reports[-1].reward is None
