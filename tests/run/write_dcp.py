"""What FSDP leaves: a distributed checkpoint as accelerate saves it, and verl's file a process.

python -m torch.distributed.run --nproc-per-node 2 tests/run/write_dcp.py BASE OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from tests.models import jitter


def main(base: Path, out: Path) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    model = AutoModelForCausalLM.from_pretrained(base)
    jitter(model, 0.02, seed=1)
    if dist.get_rank() == 0:
        model.save_pretrained(out / "expected")
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(input_ids=torch.ones(1, 8, dtype=torch.long)).logits.sum().backward()
    for step in (5, 10):
        # What accelerate's `save_fsdp_model` and `save_fsdp_optimizer` write.
        folder = out / "fsdp" / f"checkpoint-{step}"
        save({"model": model.state_dict()}, checkpoint_id=folder / "pytorch_model_fsdp_0")
    rank = dist.get_rank()
    # What verl's FSDPCheckpointManager writes.
    actor = out / "verl" / "global_step_20" / "actor"
    (actor / "huggingface").mkdir(parents=True, exist_ok=True)
    if rank == 0:
        model.config.save_pretrained(actor / "huggingface")
    torch.save(model.state_dict(), actor / f"model_world_size_2_rank_{rank}.pt")
    optimizer.step()
    state = {"optimizer": optimizer.state_dict()}
    save(state, checkpoint_id=out / "fsdp" / "checkpoint-10" / "optimizer_0")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
