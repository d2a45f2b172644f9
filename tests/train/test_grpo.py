"""GRPO: the reward rises, and trajectory, search and resume work as under SFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from backtrack.demo import ASSETS
from backtrack.errors import UsageError
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.recipe import Recipe
from backtrack.run.directory import Run
from backtrack.selection.choice.select import select
from backtrack.train.trainers.resume import newest_checkpoint
from backtrack.train.trainers.train import TrainingProgress, train

DIGITS = {"kind": "format", "name": "digits", "pattern": "[0-9]+"}


def logged(run: Run) -> list[dict[str, Any]]:
    """The Trainer's log of its steps."""
    checkpoint = newest_checkpoint(run.path / "trainer")
    assert checkpoint is not None
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [line for line in history if "reward" in line]


def tiny(base: Path, sums: Path, folder: Path, **sections: Any) -> Recipe:
    """Rewards the tiny base for digits."""
    grpo = {
        "max_steps": 6, "per_device_train_batch_size": 8, "num_generations": 4,
        "max_completion_length": 4, "learning_rate": 1e-2, **sections.pop("grpo", {}),
    }  # fmt: skip
    return Recipe.model_validate(
        {
            "name": "tiny",
            "base": str(base),
            "output": str(folder),
            "method": {"kind": "lora", "r": 4},
            "data": {"train": str(sums), "prompt": "{sum}"},
            "rewards": [DIGITS, {"kind": "numeric", "weight": 2.0}],
            "grpo": grpo,
            "trajectory": {"every_steps": 3},
            **sections,
        }
    )


@pytest.mark.slow
def test_the_reward_rises_and_the_trajectory_is_searched(tmp_path: Path) -> None:
    tasks = {"target": "target", "general": "general-opposites"}
    recipe = Recipe.model_validate(
        {
            "name": "stories",
            "base": {"model": str(ASSETS / "model"), "dtype": "float32"},
            "output": str(tmp_path),
            "method": {"kind": "lora", "r": 16, "lora_alpha": 16},
            "data": {"train": str(ASSETS / "train.jsonl"), "prompt": "{prompt}"},
            "rewards": [
                {"kind": "numeric", "answer": "{completion}"},
                {"kind": "numeric", "name": "near", "answer": "{completion}", "tolerance": 0.25},
            ],
            "grpo": {
                "max_steps": 16, "per_device_train_batch_size": 64, "num_generations": 8,
                "max_completion_length": 6, "temperature": 1.3, "learning_rate": 2e-3,
                "lr_scheduler_type": "constant", "save_strategy": "no",
            },
            "trajectory": {"every_steps": 8},
            "objectives": [
                {"kind": "examples", "role": role, "name": name, "max_new_tokens": 6,
                 "path": str(ASSETS / f"{name}.jsonl")}
                for role, name in tasks.items()
            ],
            "search": {
                "alphas": [0.5], "checkpoints": 1, "trials": 0, "batch_size": 128,
                "items": {"selection": 100, "report": 100},
            },
        }
    )  # fmt: skip
    reports: list[TrainingProgress] = []
    run = train(recipe, on_progress=reports.append)
    rewards = list({p.done: p.reward for p in reports if p.reward is not None}.values())
    assert len(rewards) == 16
    # Means of 256 completions each, whose standard error is about 0.03.
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.1
    assert run.steps == (8, 16)
    choice = select(run, weight=1.0)
    assert choice.selection.report
    measured = {m.point for m in run.measurements() if m.split == "selection"}
    assert {Point.base(), Point(step=8), Point(step=16), Point(step=16, alpha=0.5)} <= measured


@pytest.mark.parametrize("method", [{"kind": "full"}, {"kind": "oft", "oft_block_size": 8}])
def test_full_and_oft_are_trained_by_rewards(
    base: Path, sums: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    run = train(tiny(base, sums, tmp_path, method=method, grpo={"max_steps": 2}))
    placement = Placement(run, device="cpu")
    tokens = torch.arange(3, 19).view(1, -1)
    with torch.no_grad():
        start = AutoModelForCausalLM.from_pretrained(base).eval()(tokens).logits
        placement.place(Point(step=2, alpha=0.0))
        assert torch.equal(placement.model(tokens).logits, start)
        placement.place(Point(step=2, alpha=1.0))
        assert not torch.allclose(placement.model(tokens).logits, start, atol=1e-6)
    (line, _) = logged(run)
    # Each reward is logged by its name, and their weighted sum is the reward.
    weighed = line["rewards/digits/mean"] + 2.0 * line["rewards/numeric/mean"]
    assert line["reward"] == pytest.approx(weighed)


@pytest.mark.parametrize(
    "grpo",
    [{}, {"num_iterations": 2, "steps_per_generation": 2, "beta": 0.1}],
    ids=["each-step", "reused"],
)
def test_a_killed_training_by_rewards_resumes_bit_for_bit(
    base: Path, sums: Path, tmp_path: Path, grpo: dict[str, Any]
) -> None:
    def stop(progress: TrainingProgress) -> None:
        if progress.done == 5:
            raise KeyboardInterrupt

    grpo = {**grpo, "save_steps": 3}
    uninterrupted = train(tiny(base, sums, tmp_path / "whole", grpo=grpo))
    with pytest.raises(KeyboardInterrupt):
        train(tiny(base, sums, tmp_path / "cut", grpo=grpo), on_progress=stop)
    saved = newest_checkpoint(tmp_path / "cut/tiny/trainer")
    # A save inside the four steps that use one generation is delayed: that of step 3 to step 4.
    assert saved is not None
    assert saved.name == ("checkpoint-4" if "num_iterations" in grpo else "checkpoint-3")
    resumed = train(tiny(base, sums, tmp_path / "cut", grpo=grpo), resume=True)
    assert resumed.entry(6).sha256 == uninterrupted.entry(6).sha256
    assert [line["reward"] for line in logged(resumed)] == [
        line["reward"] for line in logged(uninterrupted)
    ]


def test_a_reference_that_is_not_the_base_is_refused(
    base: Path, sums: Path, tmp_path: Path
) -> None:
    pissa = {"kind": "lora", "r": 4, "init_lora_weights": "pissa"}
    with pytest.raises(UsageError, match=r"would not be the base. Set `beta` to 0"):
        train(tiny(base, sums, tmp_path, method=pissa, grpo={"beta": 0.1}))
    run = train(tiny(base, sums, tmp_path, method=pissa, grpo={"max_steps": 1}))
    Placement(run, device="cpu").place(Point.base())


def test_chats_are_rewarded_for_what_the_assistant_says(
    base: Path, sums: Path, tmp_path: Path
) -> None:
    from tests.models import make_base, make_tokenizer

    chatty = make_base(tmp_path / "chat")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(chatty)
    data = {"train": str(sums), "prompt": "{sum}", "chat": True, "system": "Be brief."}
    run = train(tiny(chatty, sums, tmp_path, data=data, grpo={"max_steps": 1}))
    (line,) = logged(run)
    # 40 sums of up to ten characters behind both turns' names and a system's turn.
    assert line["num_tokens"] > 8 * len("system: Be brief.\nuser: 1 + 2 =\nassistant: ")
