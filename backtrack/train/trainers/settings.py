"""TRL's configurations from a recipe's sections, with defaults for CPU and GPU.

Defaults that differ from TRL's:

| field | here | why |
|---|---|---|
| bf16 | true on a GPU that has it, unless fp16 is set | TRL enables it on a CPU and then fails |
| gradient_checkpointing | true on a GPU | on a CPU it costs time, and memory is rarely the limit |
| dataloader_pin_memory | true on a GPU | without one torch warns at every epoch |
| logging_steps | 1 | a checkpoint's loss is that of the step before it |
| save_steps, save_total_limit | 0.1, 2 | a kill loses at most a tenth of the training |
| report_to | none | nothing is sent to a tracker unless configured |
| disable_tqdm | true | progress goes to `on_progress` |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.sft_config import SFTConfig

from backtrack.train.library_fields import typed_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def sft_config(values: Mapping[str, Any], folder: Path, seed: int) -> SFTConfig:
    """Return TRL's configuration for supervised fine-tuning.

    Args:
        values: Section `sft` of a recipe.
        folder: Folder of the Trainer's own checkpoints.
        seed: Seed of the adapter's initialization, dropout and the data order.
    """
    typed, _ = typed_fields(SFTConfig, values, "sft")
    fixed = {"output_dir": str(folder), "seed": seed, "data_seed": seed}
    return SFTConfig(**{**_defaults(typed), **typed, **fixed})


def grpo_config(
    values: Mapping[str, Any], folder: Path, seed: int, weights: Sequence[float]
) -> GRPOConfig:
    """Return TRL's configuration for GRPO.

    Args:
        values: Section `grpo` of a recipe.
        folder: Folder of the Trainer's own checkpoints.
        seed: Seed of the adapter's initialization, the generations and the data order.
        weights: Weights of the rewards, in the recipe's order.
    """
    typed, _ = typed_fields(GRPOConfig, values, "grpo")
    fixed = {
        "output_dir": str(folder), "seed": seed, "data_seed": seed, "reward_weights": [*weights]
    }  # fmt: skip
    return GRPOConfig(**{**_defaults(typed), **typed, **fixed})


def dpo_config(values: Mapping[str, Any], folder: Path, seed: int) -> DPOConfig:
    """Return TRL's configuration for DPO.

    Args:
        values: Section `dpo` of a recipe.
        folder: Folder of the Trainer's own checkpoints.
        seed: Seed of the adapter's initialization, dropout and the data order.
    """
    typed, _ = typed_fields(DPOConfig, values, "dpo")
    fixed = {"output_dir": str(folder), "seed": seed, "data_seed": seed}
    return DPOConfig(**{**_defaults(typed), **typed, **fixed})


def _defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    has_gpu = torch.cuda.is_available() and not settings.get("use_cpu")
    return {
        "bf16": has_gpu and torch.cuda.is_bf16_supported() and not settings.get("fp16"),
        "gradient_checkpointing": has_gpu,
        "dataloader_pin_memory": has_gpu,
        "logging_steps": 1,
        "save_steps": 0.1,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
    }
