"""LoRA initializations that change the base, and the initial adapters a run must save for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import PeftModel

from backtrack.errors import UsageError
from backtrack.path.models.saving import sort_names
from backtrack.train.trajectory.live_method import active_config, initialization_of

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

BASE_CHANGING_INITIALIZATIONS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Prefixes of `init_lora_weights` for which PEFT changes the base's weights."""
_INITIALIZATIONS_TO_SAVE = ("pissa_niter", "corda", "lora_ga")
"""Of these, the ones whose initial factors cannot be computed again from the base alone."""


def require_reloadable_initialization(initialization: str) -> None:
    """Refuse adapters that do not restore the trained model when loaded on the original base.

    Args:
        initialization: `init_lora_weights` of the adapter; empty if it has none.

    Raises:
        UsageError: The initialization is LoftQ.
    """
    if initialization == "loftq":
        raise UsageError(
            "init_lora_weights='loftq' replaces the base's weights by quantized ones, and an "
            "adapter saved from it does not fit the original base. Train on a base that LoftQ "
            "saved, or use `pissa` or the default."
        )


def save_initial_adapter(
    model: PreTrainedModel | PeftModel, folder: Path, *, is_untrained: bool, is_sharded: bool
) -> None:
    """Save the untrained adapter if its initial factors cannot be computed again.

    Args:
        model: The live model.
        folder: The folder to write.
        is_untrained: No step has been taken.
        is_sharded: The weights are sharded over processes.

    Raises:
        UsageError: The adapter must be saved, but is sharded or already trained.
    """
    if not isinstance(model, PeftModel):
        return
    initialization = initialization_of(active_config(model))
    if not initialization.startswith(_INITIALIZATIONS_TO_SAVE):
        return
    if is_sharded or not is_untrained:
        raise UsageError(
            f"init_lora_weights={initialization!r} subtracted the initial adapter from the base, "
            "and that adapter cannot be saved "
            + ("while weights are sharded." if is_sharded else "once training has begun.")
            + " Save it before the first step and convert it when saving "
            "(`path_initial_model_for_weight_conversion` of PEFT's save_pretrained)."
        )
    model.save_pretrained(str(folder))
    sort_names(folder)
