"""An entrant with several GPUs is trained by as many processes, through accelerate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from backtrack.arena.launching import num_processes, train_by_processes
from backtrack.errors import FailureError
from backtrack.recipe import ClusterSection, Recipe
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.train.trainers.train import train
from tests.models import make_base

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("gpus", "number"), [("auto", 1), (0, 1), (0.5, 1), (1, 1), (2, 2)])
def test_a_process_trains_on_each_gpu_that_is_asked_for(gpus: Any, number: int) -> None:
    assert num_processes(ClusterSection(gpus_per_actor=gpus)) == number


def recipe(folder: Path, name: str, batch: int, **sections: Any) -> Recipe:
    base, data = folder / "base", folder / "train.jsonl"
    if not base.exists():
        make_base(base)
        data.write_text(
            "\n".join(f'{{"prompt": "{i}:", "completion": " {i}"}}' for i in range(16))
        )
    sft = {"max_steps": 2, "per_device_train_batch_size": batch, "use_cpu": True,
           "adam_epsilon": 1e-3}  # fmt: skip
    values = {
        "name": name, "base": str(base), "output": str(folder / "runs"),
        "method": {"kind": "full"}, "data": {"train": str(data)}, "sft": sft,
        "trajectory": {"every_steps": 1},
    }  # fmt: skip
    return Recipe.model_validate(values | sections)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_train_what_one_does_with_twice_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    two = train_by_processes(recipe(tmp_path, "two", 2), 2)
    one = train(recipe(tmp_path, "one", 4))
    assert two.steps == one.steps == (1, 2)
    wanted, found = (read_checkpoint(run, 2) for run in (one, two))
    assert wanted.keys() == found.keys()
    assert max((found[n] - wanted[n]).abs().max().item() for n in wanted) < 1e-5
    broken = {"kind": "lora", "target_modules": ["nothing"]}
    with pytest.raises(FailureError, match=r"2 processes could not train it: .*nothing"):
        train_by_processes(recipe(tmp_path, "broken", 2, method=broken), 2)
