"""Two processes leave the trajectory that one leaves, to rounding."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backtrack.run.directory import Run
from backtrack.run.reader import read_checkpoint
from backtrack.train.trainer import train
from tests.train.conftest import MakeRecipe
from tests.train.train_sharded import train as train_whole

ROOT = Path(__file__).resolve().parents[2]
PER_PROCESS = {
    **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
}  # fmt: skip
# A sum in another order; Adam's first steps amplify it where a gradient is nearly zero.
ROUNDING = 1e-4


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=PER_PROCESS, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def assert_same_trajectory(run: Run, expected: Run) -> None:
    assert run.steps == expected.steps
    assert run.manifest.method == expected.manifest.method
    for step in expected.steps:
        found, wanted = read_checkpoint(run, step), read_checkpoint(expected, step)
        assert found.keys() == wanted.keys()
        far = {n: (found[n] - wanted[n]).abs().max().item() for n in wanted}
        assert {n: d for n, d in far.items() if d > ROUNDING} == {}


def test_a_recipe_on_two_processes_by_accelerate(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    sft = {"use_cpu": True, "per_device_train_batch_size": 2}
    two = make_recipe(name="two", sft=sft)
    file = tmp_path / "two.yaml"
    file.write_text(two.model_dump_json(), encoding="utf-8")  # JSON is YAML
    # Accelerate starts several processes on a CPU only when told of several GPUs.
    done = launch(
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m",
        "backtrack", "train", str(file), "--json",
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["steps"] == [3, 6, 7]
    one = train(make_recipe(name="one", sft={**sft, "per_device_train_batch_size": 4}))
    assert_same_trajectory(Run.open(told["run"]), one)


@pytest.fixture(scope="module", params=["fsdp2", "zero3"])
def sharded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a whole model and of LoRA whose weights two processes shared."""
    if request.param == "zero3" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    out = tmp_path_factory.mktemp(request.param)
    script = str(Path(__file__).with_name("train_sharded.py"))
    launch(
        "torch.distributed.run", "--nproc-per-node", "2", script,
        request.param, "full", "lora", str(out),
    )  # fmt: skip
    return out


@pytest.mark.parametrize("method", ["full", "lora"])
def test_sharded_weights_are_gathered_and_frozen_ones_are_not(
    sharded: Path, tmp_path: Path, method: str
) -> None:
    train_whole("whole", method, tmp_path / method)
    assert_same_trajectory(Run.open(sharded / method), Run.open(tmp_path / method))
