"""Initializations of LoRA that change the base, and the initial factors a run must save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import PeftModel

from backtrack.errors import UsageError
from backtrack.train.trajectory.live_method import active_config, initialization_of

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

BASE_CHANGING_INITIALIZATIONS = ("pissa", "olora", "corda", "loftq", "lora_ga")
INITIALIZATIONS_TO_SAVE = ("pissa_niter", "corda", "lora_ga")
"""Of these, the ones whose initial factors no later loading finds again."""


def require_reloadable_initialization(start: str) -> None:
    """Refuse adapters whose saved files do not give the trained model back on the original base.

    Args:
        start: `init_lora_weights` of the adapter; empty where it has none.

    Raises:
        UsageError: Names the start.
    """
    if start == "loftq":
        raise UsageError(
            "init_lora_weights='loftq' puts a quantized matrix in the base's place, and an "
            "adapter saved from it does not fit the original base. Train on a base that LoftQ "
            "saved, or start from `pissa` or the default."
        )


def save_initial_adapter(
    model: PreTrainedModel | PeftModel, folder: Path, *, is_untrained: bool, is_sharded: bool
) -> bool:
    """Keep the adapter as it starts, where no later loading finds its factors again.

    Args:
        model: The live model.
        folder: Where to.
        is_untrained: Whether training has not begun.
        is_sharded: Whether its weights are spread over processes.

    Returns:
        Whether there was something to keep.

    Raises:
        UsageError: They must be kept and cannot be any more.
    """
    if not isinstance(model, PeftModel):
        return False
    start = initialization_of(active_config(model))
    if not start.startswith(INITIALIZATIONS_TO_SAVE):
        return False
    if is_sharded or not is_untrained:
        raise UsageError(
            f"init_lora_weights={start!r} took its initial factors out of the base, and they "
            "cannot be kept "
            + ("of sharded weights." if is_sharded else "once training has begun.")
            + " Save the adapter before the first step and convert it when saving "
            "(`path_initial_model_for_weight_conversion` of PEFT's save_pretrained)."
        )
    model.save_pretrained(str(folder))
    return True
