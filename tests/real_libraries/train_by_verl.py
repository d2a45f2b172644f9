"""What verl leaves: `python train_by_verl.py BASE DATA OUT`, a folder a run.

verl's trainers need a GPU; here its checkpoint manager saves models that torch's FSDP trains in
one process on the CPU: as shards alone, and beside them as transformers saves a model. An
adapter's shards are also converted by verl's merger.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

RUNS: dict[str, tuple[bool, list[str]]] = {
    "whole": (False, ["model", "optimizer", "extra"]),
    "whole, also as hf_model": (False, ["model", "optimizer", "extra", "hf_model"]),
    "LoRA": (True, ["model", "optimizer", "extra"]),
}
ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531", "RANK": "0", "WORLD_SIZE": "1"}


def main(base: Path, _data: Path, out: Path) -> None:
    os.environ |= ADDRESS
    dist.init_process_group("gloo")
    for name, (is_lora, contents) in RUNS.items():
        train(base, out / name, contents, is_lora=is_lora)
    dist.destroy_process_group()
    for step in (1, 2):
        merge(out / f"LoRA/global_step_{step}/actor", out / f"LoRA, merged/global_step_{step}")


def merge(source: Path, target: Path) -> None:
    """Convert a checkpoint by verl's own program."""
    program = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    folders = ["--local_dir", str(source), "--target_dir", str(target)]
    subprocess.run([*program, *folders], check=True)


def train(base: Path, out: Path, contents: list[str], *, is_lora: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if is_lora:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", r=4))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",)))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    manager = FSDPCheckpointManager(
        model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), tokenizer,
        OmegaConf.create({"save_contents": contents, "load_contents": contents}),
    )  # fmt: skip
    ids = tokenizer(["2 + 3 = 5", "1 + 1 = 2"], return_tensors="pt")["input_ids"]
    for step in (1, 2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        manager.save_checkpoint(str(out / f"global_step_{step}" / "actor"), global_step=step)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
