"""Write a placed model as others load it: stock PEFT, transformers and vLLM.

Exports are written here, and so is what an engine measures: the same files.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from peft import PeftType
from safetensors.torch import save_file

from backtrack.path.adapters.rewritten_base import uniform_lora
from backtrack.path.models.embeddings import untied
from backtrack.path.models.loading import read_adapter_config
from backtrack.run.checkpoint_reader import read_tensors
from backtrack.run.checkpoint_writer import is_adapter

if TYPE_CHECKING:
    from pathlib import Path

MAX_SHARD = "5GB"
"""Largest file of a written model."""


def save_model(model: Any, folder: Path, *, is_untied: bool = False) -> None:
    """Write a model as it stands: the adapter of a `PeftModel`, else the whole model.

    Args:
        model: The live model of a placement.
        folder: Where; made if it is not there.
        is_untied: Write a head that is tied to the embedding as a tensor of its own, and say so in
            the configuration.
    """
    with untied(model) if is_untied else nullcontext():
        model.save_pretrained(str(folder), max_shard_size=MAX_SHARD)
    _make_uniform(folder)


def _make_uniform(folder: Path) -> None:
    """Write a LoRA that has patterns as one rank and scaling, which every vLLM reads too.

    Releases of vLLM before 0.32 drop `rank_pattern` and `alpha_pattern` without a word.
    """
    if not is_adapter(folder):
        return
    config: Any = read_adapter_config(folder)
    if config.peft_type != PeftType.LORA or not (config.rank_pattern or config.alpha_pattern):
        return
    if config.target_parameters:
        return  # a factor of stacked experts has their number in its rank
    uniform, tensors = uniform_lora(config, read_tensors(folder))
    path = folder / "adapter_model.safetensors"
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, metadata={"format": "pt"})
    uniform.save_pretrained(str(folder))
