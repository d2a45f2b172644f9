"""TRL's trainer and configuration of each paradigm, and its configuration from a recipe's section.

Each is imported when a recipe needs it. ORPO is among what TRL calls experimental, which any of
its releases may change; its notice of that on import is not shown.

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
| remove_unused_columns | false for ORPO | TRL sets it so itself, with a warning |
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import torch

from backtrack.train.library_fields import typed_fields
from backtrack.train.trainers.mixin import TrainerExtensions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from backtrack.recipe import Paradigm


def config_class(paradigm: Paradigm) -> Any:
    """TRL's configuration of a paradigm, a dataclass.

    Raises:
        ImportError: TRL, as installed, has none.
    """
    return _of_trl(paradigm, "Config")


@cache
def trainer_class(paradigm: Paradigm) -> Any:
    """TRL's trainer of a paradigm with our extensions.

    Raises:
        ImportError: TRL, as installed, has none.
    """
    plain = _of_trl(paradigm, "Trainer")
    return type(f"Extended{plain.__name__}", (TrainerExtensions, plain), {})


def trainer_config(
    paradigm: Paradigm, values: Mapping[str, Any], folder: Path, seed: int, **fixed: Any
) -> Any:
    """TRL's configuration from a recipe's section.

    Args:
        paradigm: The section's name.
        values: The section.
        folder: Folder of the Trainer's own checkpoints.
        seed: Seed of the adapter's initialization, dropout, generations and the data order.
        fixed: Further fields, which the section does not set.
    """
    kind = config_class(paradigm)
    typed, _ = typed_fields(kind, values, paradigm)
    ours = {"output_dir": str(folder), "seed": seed, "data_seed": seed, **fixed}
    defaults = _defaults(typed)
    if paradigm == "orpo":
        defaults["remove_unused_columns"] = False
    return kind(**{**defaults, **typed, **ours})


def _of_trl(paradigm: Paradigm, part: Literal["Config", "Trainer"]) -> Any:
    folder = "experimental.orpo" if paradigm == "orpo" else "trainer"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = import_module(f"trl.{folder}.{paradigm}_{part.lower()}")
    return getattr(module, f"{paradigm.upper()}{part}")


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
