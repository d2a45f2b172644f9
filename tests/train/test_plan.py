"""A plan's estimates are what training then needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backtrack.cli import app
from backtrack.errors import RunError, UsageError
from backtrack.recipe import find_recipe, load_recipe
from backtrack.train.plan.plan import make_plan, require_plannable, resource_shortages
from backtrack.train.trainers.build import build_trainer, num_steps
from backtrack.train.trainers.train import train
from tests.train.conftest import MakeRecipe
from tests.train.test_grpo import tiny

LORA = {"kind": "lora", "r": 4}


@pytest.mark.parametrize(
    ("name", "method", "total", "trainable"),
    [
        ("qwen2.5-7b-math-full", "{kind: full}", 7_615_616_512, 7_615_616_512),
        # As PEFT prints it for r=8 on all linear layers.
        ("qwen2.5-7b-math-lora", "{kind: lora, r: 8}", 7_615_616_512, 20_185_088),
        ("qwen2.5-7b-math-lora", "{kind: ia3}", 7_615_616_512, 28 * (3584 + 512 + 18944)),
        ("llama-3.2-3b-math-oft", "{kind: ln_tuning}", 3_212_749_824, 57 * 3072),
        (
            "llama-3.2-3b-math-lora",
            "{kind: lora, r: 8, init_lora_weights: milora}", 3_212_749_824, 12_156_928,
        ),
    ],
)  # fmt: skip
def test_parameters_are_counted_without_a_download(
    name: str, method: str, total: int, trainable: int
) -> None:
    recipe = load_recipe(find_recipe(Path(name)), [f"method={method}"])
    plan = make_plan(recipe)
    assert (plan.num_parameters, plan.num_trainable) == (total, trainable)
    assert plan.evaluation_tokens is not None
    # 50,000 examples, 256 a step, four epochs.
    assert plan.num_steps == 4 * 196


@pytest.mark.parametrize("method", [{"kind": "full"}, LORA], ids=["full", "lora"])
def test_a_plan_is_what_training_needs(make_recipe: MakeRecipe, method: dict[str, Any]) -> None:
    sft = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 6}
    recipe = make_recipe(method=method, sft=sft, trajectory={"every_steps": 3, "storage": "plain"})
    plan = make_plan(recipe)
    require_plannable(recipe)
    run = train(recipe)
    assert plan.num_steps == run.final.step == 7
    assert plan.num_checkpoints == len(run.steps)
    weights = {path.stat().st_size for path in run.folder(7).glob("*.safetensors")}
    # A safetensors file also contains a header.
    assert plan.checkpoint_bytes == pytest.approx(sum(weights), rel=0.3)
    assert (plan.checkpoint_bytes or 0) < sum(weights)
    assert not resource_shortages(plan, Path(recipe.output))
    with pytest.raises(RunError, match="already holds a run"):
        require_plannable(recipe)


def test_steps_of_training_by_rewards_are_counted_as_trl_does(
    base: Path, sums: Path, tmp_path: Path
) -> None:
    grpo = {
        "max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 2,
        "num_iterations": 2,
    }  # fmt: skip
    recipe = tiny(base, sums, tmp_path, grpo=grpo)
    assert make_plan(recipe).num_steps == num_steps(build_trainer(recipe, tmp_path))


def test_what_cannot_be_known_is_noted(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        base="some/unknown-base", data={"train": "some/data"}, sft={"max_steps": -1}
    )
    plan = make_plan(recipe)
    assert plan.num_parameters is plan.num_steps is plan.trajectory_bytes is None
    notes = " ".join(plan.notes)
    assert "the config.json of some/unknown-base is in neither" in notes
    assert "data that is not local" in notes
    with pytest.raises(UsageError, match="no `method`"):
        require_plannable(make_recipe(method=None))
    huge = load_recipe(find_recipe(Path("qwen2.5-7b-math-full")))
    plan = make_plan(huge)
    plan.trajectory_bytes = 1 << 60
    assert "of disk are needed" in resource_shortages(plan, Path("runs"))[0]


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    base: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dry.yaml"
    path.write_text(
        f"name: dry\nbase: {base}\noutput: {tmp_path / 'runs'}\nmethod: {{kind: lora, r: 4}}\n"
        f"data: {{train: {sums}, prompt: '{{sum}}', completion: '{{answer}}'}}\n"
        "sft: {num_train_epochs: 2, per_device_train_batch_size: 6}\n"
        "trajectory: {every_steps: 3}\n"
    )
    app(["train", str(path), "--dry-run"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert f"{tmp_path / 'runs' / 'dry'} would be trained." in shown
    assert "This machine has the disk and memory for it." in shown
    assert not (tmp_path / "runs").exists()
    app(["recipes", "check", str(path), "--json"], standalone_mode=False)
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["num_steps"], plan["num_checkpoints"]) == (14, 5)
    assert plan["checkpoint_bytes"] == 4 * plan["num_trainable"]
    app(["train", str(path), "--dry-run", "--json", "--dtype", "float16"], standalone_mode=False)
    halved = json.loads(capsys.readouterr().out)
    assert plan["memory_bytes"] - halved["memory_bytes"] == 2 * plan["num_parameters"]
