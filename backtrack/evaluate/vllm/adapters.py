"""Which adapters vLLM reads, told from their files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from backtrack.errors import EngineError, UsageError
from backtrack.run.checkpoint_reader import shapes
from backtrack.run.checkpoint_writer import is_adapter
from backtrack.run.files import read_record

if TYPE_CHECKING:
    from pathlib import Path

AskedForm = Literal["auto", "attached", "merged"]

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Bounds on ranks that vLLM knows."""


def allowed_rank(adapter: Path) -> int:
    """The least bound that vLLM knows for an adapter's rank.

    Raises:
        EngineError: The rank is above all of them.
    """
    rank = _config(adapter)["r"]
    bound = next((known for known in RANKS if rank <= known), None)
    if bound is None:
        raise EngineError(
            f"vLLM serves LoRA up to rank {RANKS[-1]}, this one has {rank}. Use `placement: "
            "{form: merged}`, or measure with `engine: transformers`."
        )
    return bound


def target_modules(adapter: Path) -> list[str]:
    """Last parts of the names of the modules that an adapter changes."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
        names = list(file.keys())
    return sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in names})


def why_not_in_vllm(folder: Path) -> str:
    """What of an adapter vLLM does not read; empty if it reads all of it."""
    config = _config(folder)
    kind = str(config.get("peft_type", "unknown"))
    if kind != "LORA":
        return f"{kind} adapters"
    names = shapes(folder)
    unread = {
        "LoRA on the embedding": any("lora_embedding_" in n for n in names),
        # It drops the head's delta from a prompt's likelihoods (vLLM issue 51594).
        "LoRA on the head": any(".lm_head.lora_" in n for n in names),
        "DoRA": config.get("use_dora"),
        "`modules_to_save`": config.get("modules_to_save"),
        "biases": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "trained tokens": config.get("trainable_token_indices"),
        "LoRA on stacked experts (`target_parameters`)": config.get("target_parameters"),
        "activated LoRA": config.get("alora_invocation_tokens"),
    }
    return " or ".join(name for name, is_there in unread.items() if is_there)


def form_in_vllm(folder: Path, asked: AskedForm) -> AskedForm:
    """The form in which points of a run are given to a vLLM engine.

    Args:
        folder: A checkpoint.
        asked: The form the recipe asks for; `auto` is attached if vLLM reads the adapter.

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


def _config(folder: Path) -> dict[str, Any]:
    return read_record(folder / "adapter_config.json", dict[str, Any])
