"""TRL's configurations from a recipe's sections, with defaults for CPU and GPU alike.

Values are read by the type the field is declared with, so `1e-4`, which YAML takes for text, is a
number. What differs from TRL's own defaults:

| field | here | why |
|---|---|---|
| bf16 | on a GPU that has it, unless fp16 is set | TRL turns it on everywhere, and refuses a CPU |
| gradient_checkpointing | on a GPU | on a CPU it costs speed, and memory is no bound |
| dataloader_pin_memory | on a GPU | without one torch warns at every epoch |
| logging_steps | 1 | a checkpoint's loss is that of the step before it |
| save_steps, save_total_limit | 0.1, 2 | a kill loses a tenth of the run at most |
| report_to | none | nothing is sent anywhere unless asked |
| disable_tqdm | true | progress goes to `on_progress` |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.sft_config import SFTConfig

from backtrack.train.library_fields import typed_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def sft_config(values: Mapping[str, Any], folder: Path, seed: int) -> SFTConfig:
    """TRL's configuration.

    Args:
        values: Section `sft` of a recipe.
        folder: Where the Trainer keeps its own state.
        seed: Of the adapter's start, dropout and the order of the data.
    """
    typed, _ = typed_fields(SFTConfig, values, "sft")
    fixed = {"output_dir": str(folder), "seed": seed, "data_seed": seed}
    return SFTConfig(**{**_defaults(typed), **typed, **fixed})


def grpo_config(
    values: Mapping[str, Any], folder: Path, seed: int, weights: Sequence[float]
) -> GRPOConfig:
    """TRL's configuration for training by rewards.

    Args:
        values: Section `grpo` of a recipe.
        folder: Where the Trainer keeps its own state.
        seed: Of the adapter's start, what is generated and the order of the data.
        weights: Of the rewards, in their order.
    """
    typed, _ = typed_fields(GRPOConfig, values, "grpo")
    fixed = {
        "output_dir": str(folder), "seed": seed, "data_seed": seed, "reward_weights": [*weights]
    }  # fmt: skip
    return GRPOConfig(**{**_defaults(typed), **typed, **fixed})


def _defaults(asked: Mapping[str, Any]) -> dict[str, Any]:
    has_gpu = torch.cuda.is_available() and not asked.get("use_cpu")
    return {
        "bf16": has_gpu and torch.cuda.is_bf16_supported() and not asked.get("fp16"),
        "gradient_checkpointing": has_gpu,
        "dataloader_pin_memory": has_gpu,
        "logging_steps": 1,
        "save_steps": 0.1,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
    }
