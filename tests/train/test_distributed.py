"""Several processes write the same trajectory as one, up to rounding."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backtrack.recipe import Recipe
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.run.directory import Run
from backtrack.train.trainers.train import train
from tests.train.conftest import MakeRecipe
from tests.train.test_callback import model_in_memory
from tests.train.train_sharded import EPSILON
from tests.train.train_sharded import train as train_whole

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PER_PROCESS = {
    **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
}  # fmt: skip
# Sums in another order put gradients up to 4e-7 of the largest apart; with EPSILON a step of Adam
# at 1e-2 makes 4e-6 of that at the very most. 1.2e-7 is seen; gradients added up instead of
# averaged, or clipped at another norm, are 3e-3 or more apart.
ROUNDING = 1e-5
FULL = {"kind": "full"}
LORA = {
    "kind": "lora",
    "r": 4,
    "target_modules": ["q_proj", "v_proj"],
    "modules_to_save": ["norm"],
}
ON_CPU = {"use_cpu": True, "adam_epsilon": EPSILON}


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


def shared_among(num: int, make_recipe: MakeRecipe, name: str, method: dict[str, Any]) -> Recipe:
    """A recipe whose four rows a step are shared among processes."""
    sft = {**ON_CPU, "per_device_train_batch_size": 4 // num}
    return make_recipe(name=f"{num}-{name}", method=method, sft=sft)


def on_one(make_recipe: MakeRecipe, name: str, method: dict[str, Any]) -> Run:
    return train(shared_among(1, make_recipe, name, method))


def written(recipe: Recipe, folder: Path) -> str:
    file = folder / f"{recipe.name}.yaml"
    file.write_text(recipe.model_dump_json(), encoding="utf-8")  # JSON is YAML
    return str(file)


def test_a_recipe_on_two_processes_by_accelerate(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    two = shared_among(2, make_recipe, "full", FULL)
    # Accelerate starts several processes on a CPU only when told of several GPUs.
    done = launch(
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m",
        "backtrack", "train", written(two, tmp_path), "--json",
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["steps"] == [3, 6, 7]
    assert_same_trajectory(Run.open(told["run"]), on_one(make_recipe, "full", FULL))


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed; the dev extra installs it on Linux",
)
@pytest.mark.parametrize(
    ("stage", "methods", "share"),
    [
        ("2", {"full": FULL}, "*zero_pp_rank_1_*optim_states.pt"),
        ("3", {"full": FULL, "lora": LORA}, "zero_pp_rank_1_*model_states.pt"),
    ],
    ids=["zero2", "zero3"],
)
def test_recipes_on_two_processes_by_deepspeed(
    make_recipe: MakeRecipe, tmp_path: Path, stage: str, methods: dict[str, Any], share: str
) -> None:
    recipes = {
        name: shared_among(2, make_recipe, name, method) for name, method in methods.items()
    }
    launch(
        "accelerate.commands.launch", "--use_deepspeed", "--zero_stage", stage,
        "--num_processes", "2", "-m", "tests.train.train_by_deepspeed",
        *(written(recipe, tmp_path) for recipe in recipes.values()),
    )  # fmt: skip
    for name, recipe in recipes.items():
        run = Run.open(Path(recipe.output) / recipe.name)
        assert [*run.path.glob(f"trainer/*/*/{share}")], "accelerate did without DeepSpeed"
        assert_same_trajectory(run, on_one(make_recipe, name, methods[name]))


PARTITIONED = {
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}
"""ZeRO-3 that partitions every tensor: by default it leaves those below 1e5 numbers whole."""


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed; the dev extra installs it on Linux",
)
def test_tensors_partitioned_over_four_processes_by_zero3_are_saved_whole(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    methods: dict[str, dict[str, Any]] = {"full": FULL, "lora": LORA}
    recipes = {n: shared_among(4, make_recipe, n, method) for n, method in methods.items()}
    config = tmp_path / "zero3.json"
    config.write_text(json.dumps(PARTITIONED))
    launch(
        "accelerate.commands.launch", "--use_deepspeed", "--deepspeed_config_file", str(config),
        "--num_processes", "4", "-m", "tests.train.train_by_deepspeed",
        *(written(recipe, tmp_path) for recipe in recipes.values()),
    )  # fmt: skip
    for name, recipe in recipes.items():
        run = Run.open(Path(recipe.output) / recipe.name)
        assert_same_trajectory(run, on_one(make_recipe, name, methods[name]))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs whose weights were sharded over processes by FSDP2, the main one being slow."""
    out = tmp_path_factory.mktemp("fsdp2")
    model_in_memory().save_pretrained(out / "base")
    script = str(Path(__file__).with_name("train_sharded.py"))
    for num, methods in SHARDED.items():
        arguments = ("--nproc-per-node", str(num), script, *methods, str(out))
        launch("torch.distributed.run", *arguments)
    return out


SHARDED = {2: ("full", "lora-of-files"), 4: ("lora", "full-of-files")}
"""What is trained by so many processes."""


@pytest.mark.parametrize("method", [*SHARDED[2], *SHARDED[4]])
def test_sharded_weights_are_saved_as_on_one_process(
    sharded: Path, tmp_path: Path, method: str
) -> None:
    shutil.copytree(sharded / "base", tmp_path / "base")
    train_whole(method, tmp_path / method)
    run = Run.open(sharded / method)
    assert_same_trajectory(run, Run.open(tmp_path / method))
    assert (run.path / "base").is_dir() == (not method.endswith("-of-files"))


@pytest.mark.parametrize(
    ("method", "num_bases"), [("full", 1), ("lora", 1), ("full-of-files", 1), ("lora-of-files", 0)]
)
def test_frozen_weights_are_gathered_only_to_write_the_base(
    sharded: Path, method: str, num_bases: int
) -> None:
    """Whole models are also gathered once to be compared with the files that they name."""
    sizes = json.loads((sharded / f"{method}.json").read_text())
    run = Run.open(sharded / method)
    saved = sum(t.numel() for step in run.steps for t in read_checkpoint(run, step).values())
    base = sum(t.numel() for t in model_in_memory().state_dict().values())
    assert sum(sizes) == pytest.approx(saved + num_bases * base, rel=0.1)
