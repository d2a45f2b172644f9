"""Write a placed model in the format that stock PEFT, transformers and vLLM load.

Exports are written by this module, and so are the files that a vLLM engine measures.
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
from backtrack.run.reader import read_tensors, shapes
from backtrack.run.writer import is_adapter

if TYPE_CHECKING:
    from pathlib import Path

MAX_SHARD = "5GB"
"""Largest file of a written model, as `save_pretrained` takes it."""

RequestedForm = Literal["auto", "attached", "merged"]


def save_model(model: Any, folder: Path, *, is_untied: bool = False) -> None:
    """Write a model at its current point: the adapter of a `PeftModel`, else the whole model.

    Args:
        model: The live model of a placement.
        folder: Folder to write into; created if missing.
        is_untied: Write a head that is tied to the embedding as a separate tensor, and record it
            as untied in config.json.
    """
    with untied(model) if is_untied else nullcontext():
        model.save_pretrained(str(folder), max_shard_size=MAX_SHARD)
    _make_uniform(folder)


def _make_uniform(folder: Path) -> None:
    """Rewrite a LoRA with patterns to one rank and scaling, which every release of vLLM reads.

    Releases before 0.32 silently ignore `rank_pattern` and `alpha_pattern`.
    """
    if not is_adapter(folder):
        return
    config: Any = read_adapter_config(folder)
    if config.peft_type != PeftType.LORA or not (config.rank_pattern or config.alpha_pattern):
        return
    if config.target_parameters:
        return  # the rank of a factor on stacked experts includes the number of experts
    uniform, tensors = uniform_lora(config, read_tensors(folder))
    path = folder / "adapter_model.safetensors"
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, metadata={"format": "pt"})
    uniform.save_pretrained(str(folder))


def why_not_in_vllm(folder: Path) -> str:
    """The features of an adapter that vLLM does not read; empty if it reads all of it."""
    config: Any = read_adapter_config(folder)
    if config.peft_type != PeftType.LORA:
        return f"{PeftType(config.peft_type).value} adapters"
    names = shapes(folder)
    unread = [
        name
        for name, is_used in {
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
        if is_used
    ]
    return " or ".join(unread)


def form_in_vllm(folder: Path, requested: RequestedForm) -> RequestedForm:
    """The form in which a vLLM engine holds a run's points.

    Args:
        folder: A checkpoint.
        requested: The recipe's form; `auto` is attached if vLLM reads the adapter, else merged.

    Raises:
        UsageError: Attached is requested, and vLLM does not read the adapter.
    """
    unread = why_not_in_vllm(folder) if is_adapter(folder) else "whole models as adapters"
    if unread and requested == "attached":
        raise UsageError(
            f"{folder}: vLLM does not read {unread}. With `engine: vllm` use `placement: {{form: "
            "merged}`, or `auto`; attached points are measured with `engine: transformers`."
        )
    if requested != "auto":
        return requested
    return "merged" if unread else "attached"
