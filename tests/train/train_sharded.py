"""Train with weights sharded by FSDP2, or unsharded, saving every second step by the callback.

    python -m torch.distributed.run --nproc-per-node 2 tests/train/train_sharded.py full lora OUT

A loop of its own replaces the Trainer, since accelerate does not shard by FSDP on a CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import TrainerControl, TrainerState, TrainingArguments

from backtrack.train.trajectory.callback import TrajectoryCallback
from tests.train.test_callback import LINEAR, model_in_memory

NUM_STEPS = 5
# Adam divides by the gradient's size plus this. With the usual 1e-8, rounding in a gradient that
# is nearly zero moves its weight by as much as the learning rate, and bounds say nothing.
EPSILON = 1e-3


def make_model(method: str) -> Any:
    model = model_in_memory()
    if method == "full":
        return model
    torch.manual_seed(1)
    config = LoraConfig(
        r=4, target_modules=LINEAR, modules_to_save=["norm"], task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def batch(step: int) -> torch.Tensor:
    """Four rows; of two processes each takes two."""
    rows = torch.randint(3, 60, (4, 12), generator=torch.Generator().manual_seed(step))
    if not dist.is_initialized():
        return rows
    return rows[dist.get_rank() * 2 : dist.get_rank() * 2 + 2]


def shard(model: Any) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
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
    model = make_model(method)
    take_step = sharded_step(model)
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    args = TrainingArguments(output_dir=str(out.with_name("unused")), use_cpu=True)
    state = TrainerState(max_steps=NUM_STEPS, is_world_process_zero=is_main)
    control = TrainerControl()
    callback = TrajectoryCallback(out, every_steps=2)
    callback.on_train_begin(args, state, control, model=model)
    for step in range(1, NUM_STEPS + 1):
        take_step(batch(step))
        state.global_step = step
        callback.on_step_end(args, state, control, model=model)
    callback.on_train_end(args, state, control, model=model)


if __name__ == "__main__":
    *methods, folder = sys.argv[1:]
    dist.init_process_group("gloo")
    for name in methods:
        train(name, Path(folder) / name)
    dist.destroy_process_group()
