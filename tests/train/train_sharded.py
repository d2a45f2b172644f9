"""Train with weights sharded by FSDP2, or unsharded, saving every second step.

    python -m torch.distributed.run --nproc-per-node NUM tests/train/train_sharded.py METHOD... OUT

A method is `full` or `lora` of a model built in memory, or with `-of-files` of one loaded from
OUT/base. A loop of its own replaces the Trainer, since accelerate does not shard by FSDP on a CPU.
The main process takes longer to create the run and to write a step than its collectives wait.
OUT/METHOD.json lists the sizes of the tensors that were gathered.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from backtrack.run.trajectory_writer import TrajectoryWriter
from backtrack.train.trajectory import beginning
from backtrack.train.trajectory.saver import CheckpointSaver
from tests.train.test_callback import LINEAR, model_in_memory

NUM_STEPS = 5
# Adam divides by the gradient's size plus this. With the usual 1e-8, rounding in a gradient that
# is nearly zero moves its weight by as much as the learning rate, and bounds say nothing.
EPSILON = 1e-3
COLLECTIVE_SECONDS = 4
"""How long a process waits in a collective of the training."""


def make_model(method: str, out: Path) -> Any:
    is_of_files = method.endswith("-of-files")
    model = (
        AutoModelForCausalLM.from_pretrained(out / "base") if is_of_files else model_in_memory()
    )
    if method.startswith("full"):
        return model
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, target_modules=LINEAR, modules_to_save=["norm"], task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def batch(step: int) -> torch.Tensor:
    """Four rows, shared among the processes."""
    rows = torch.randint(3, 60, (4, 12), generator=torch.Generator().manual_seed(step))
    if not dist.is_initialized():
        return rows
    return rows.chunk(dist.get_world_size())[dist.get_rank()]


def shard(model: Any) -> None:
    group = dist.new_group(timeout=timedelta(seconds=COLLECTIVE_SECONDS))
    mesh = DeviceMesh.from_group(group, "cpu")
    for module in model.modules():
        if type(module).__name__ == "LlamaDecoderLayer":
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def sharded_step(model: Any) -> Callable[[torch.Tensor], None]:
    """One optimizer step on a batch, the weights sharded first if there are several processes."""
    if dist.is_initialized():
        shard(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, eps=EPSILON)

    def step(ids: torch.Tensor) -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def train(method: str, out: Path) -> None:
    """Five steps; `out` becomes the run."""
    model = make_model(method, out.parent)
    take_step = sharded_step(model)
    with CheckpointSaver.begin(out, model, every_steps=2) as saver:
        for step in range(1, NUM_STEPS + 1):
            take_step(batch(step))
            saver.step(step)


def slow(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which takes longer the first time than a collective waits."""
    delays = [COLLECTIVE_SECONDS + 1.5]

    def delayed(*args: Any, **options: Any) -> Any:
        time.sleep(delays.pop() if delays else 0)
        return function(*args, **options)

    return delayed


def count_gathered(sizes: list[int]) -> None:
    """Note the size of each tensor that is gathered from now on."""
    gather = DTensor.full_tensor

    def counted(tensor: DTensor, **options: Any) -> torch.Tensor:
        sizes.append(tensor.numel())
        return gather(tensor, **options)

    DTensor.full_tensor = counted  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    *methods, folder = sys.argv[1:]
    dist.init_process_group("gloo")
    beginning.create_run = slow(beginning.create_run)  # type: ignore[attr-defined]
    TrajectoryWriter.offer = slow(TrajectoryWriter.offer)  # type: ignore[method-assign]
    gathered: list[int] = []
    count_gathered(gathered)
    for name in methods:
        gathered.clear()
        train(name, Path(folder) / name)
        if dist.get_rank() == 0:
            Path(folder, f"{name}.json").write_text(json.dumps(gathered))
    dist.destroy_process_group()
