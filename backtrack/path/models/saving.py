"""Write a placed model as others load it: stock PEFT, transformers and vLLM.

Exports are written here, and so is what an engine measures: the same files.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

from peft import PeftType
from safetensors.torch import save_file

from backtrack.errors import UsageError
from backtrack.path.adapters.rewritten_base import uniform_lora
from backtrack.path.models.embeddings import untied
from backtrack.path.models.loading import read_adapter_config
from backtrack.run.checkpoint_reader import read_tensors, shapes
from backtrack.run.checkpoint_writer import is_adapter

if TYPE_CHECKING:
    from pathlib import Path

MAX_SHARD = "5GB"
"""Largest file of a written model."""

AskedForm = Literal["auto", "attached", "merged"]


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


def why_not_in_vllm(folder: Path) -> str:
    """What of an adapter vLLM does not read; nothing where it reads all of it."""
    config: Any = read_adapter_config(folder)
    if config.peft_type != PeftType.LORA:
        return f"{PeftType(config.peft_type).value} adapters"
    names = shapes(folder)
    found = [
        name
        for name, is_there in {
            "LoRA on the embedding": any("lora_embedding_" in n for n in names),
            # It drops the head's delta from a prompt's likelihoods (vLLM issue 51594).
            "LoRA on the head": any(".lm_head.lora_" in n for n in names),
            "DoRA": config.use_dora,
            "`modules_to_save`": config.modules_to_save,
            "biases": config.bias != "none" or config.lora_bias,
            "trained tokens": config.trainable_token_indices,
            "LoRA on stacked experts (`target_parameters`)": config.target_parameters,
            "activated LoRA": config.alora_invocation_tokens,
        }.items()
        if is_there
    ]
    return " or ".join(found)


def form_in_vllm(folder: Path, asked: AskedForm) -> AskedForm:
    """How points of a run stand in a vLLM engine.

    Args:
        folder: A checkpoint.
        asked: The form the recipe asks for; `auto` is attached where vLLM reads the adapter.

    Raises:
        UsageError: Attached is asked for, and vLLM does not read the adapter.
    """
    unread = why_not_in_vllm(folder) if is_adapter(folder) else "whole models as adapters"
    if unread and asked == "attached":
        raise UsageError(
            f"{folder}: vLLM does not read {unread}. With `engine: vllm` use `placement: {{form: "
            "merged}`, or `auto`; attached points are measured with `engine: transformers`."
        )
    return asked if asked != "auto" else "merged" if unread else "attached"
