"""Check what this machine supports, and what to install for the rest.

Nothing is changed, and the network is not used.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

from backtrack.formatting import byte_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backtrack.recipe import Recipe

Sign = Literal["ok", "missing", "note"]

LIBRARIES = ("torch", "transformers", "peft", "trl", "lm_eval", "optuna")
EXTRAS = {
    "quantized": ("bitsandbytes", "bases in 4 or 8 bits"),
    "ray": ("ray", "measuring by several processes, or on a cluster"),
    "ifeval": ("langdetect", "the lm-eval task ifeval"),
}
LEAST_FREE_BYTES = 20_000_000_000
"""Disk space for a dense trajectory of a few whole models or of very many adapters."""
SHARE_FOR_WEIGHTS = 0.8
"""Share of a GPU's memory for weights; the rest is for activations and the KV cache."""
BYTES_A_PARAMETER = 2.0
"""Size of a parameter in bfloat16."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        topic: What was checked.
        sign: `ok`; `missing` if something can be installed or repaired; else `note`.
        text: What was found.
        advice: What to do about it; empty if there is nothing to do.
    """

    topic: str
    sign: Sign
    text: str
    advice: str = ""


def examine(folder: Path, recipe: Recipe | None = None) -> Iterator[Finding]:
    """Yield the findings of all checks.

    Args:
        folder: Folder of the runs; it need not exist.
        recipe: Of extras and engines, only what this needs is checked; all of them if not given.
    """
    yield _python()
    yield _memory()
    yield _disk(folder)
    yield from _gpus()
    for name in LIBRARIES:
        yield _library(name)
    for extra in needed_extras(recipe) if recipe else EXTRAS:
        yield _extra(extra, *EXTRAS[extra])
    if recipe is None or recipe.engine.kind == "vllm":
        yield _engine()
    yield _hub()


def needed_extras(recipe: Recipe) -> tuple[str, ...]:
    """The extras that a recipe needs."""
    tasks = [getattr(objective, "task", "") for objective in recipe.objectives]
    needed = {
        "quantized": recipe.base.quantization is not None,
        "ray": not recipe.cluster.is_one_process,
        "ifeval": any("ifeval" in task for task in tasks),
    }
    return tuple(extra for extra in EXTRAS if needed[extra])


def _python() -> Finding:
    return Finding(
        "python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}"
    )


def _memory() -> Finding:
    import torch

    from backtrack.free_memory import free_bytes, total_host_bytes

    total, free = total_host_bytes(), free_bytes(torch.device("cpu"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{cores} cores, {byte_size(total)} of memory, {byte_size(free)} free"
    return Finding("machine", "ok", text)


def _disk(folder: Path) -> Finding:
    existing = next(
        path for path in (folder.resolve(), *folder.resolve().parents) if path.exists()
    )
    free = shutil.disk_usage(existing).free
    text = f"{byte_size(free)} free in {existing}"
    if free >= LEAST_FREE_BYTES:
        return Finding("disk", "ok", text)
    advice = "Limit trajectories with `trajectory: {max_bytes: ...}`, or keep runs elsewhere."
    return Finding("disk", "note", text, advice)


def _gpus() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield _no_gpu()
        return
    for i in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(i)
        largest = SHARE_FOR_WEIGHTS * found.total_memory / BYTES_A_PARAMETER
        has_bf16 = found.major >= 8
        text = (
            f"{found.name}, {byte_size(found.total_memory)}: points of adapters on bases up to "
            f"about {largest / 1e9:.0f}B parameters"
        )
        advice = "" if has_bf16 else "No bfloat16: write `bf16: false` under `sft`."
        yield Finding(f"gpu {i}", "ok" if has_bf16 else "note", text, advice)


def _no_gpu() -> Finding:
    import torch

    if torch.backends.mps.is_available():
        return Finding("gpu", "note", "Apple MPS, which is untested", "")
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        advice = "Install torch with CUDA: https://pytorch.org/get-started/locally/"
        return Finding(
            "gpu", "missing", f"present, but torch {torch.__version__} is built for CPUs", advice
        )
    advice = "Small models and the demo run on the CPU; 7B models need a GPU."
    return Finding("gpu", "note", "none", advice)


def _library(name: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, "missing", "not installed", "pip install backtrack-llm")


def _extra(extra: str, module: str, purpose: str) -> Finding:
    if importlib.util.find_spec(module) is not None:
        return Finding(f"[{extra}]", "ok", purpose)
    return Finding(f"[{extra}]", "missing", purpose, f"pip install 'backtrack-llm[{extra}]'")


def _engine() -> Finding:
    purpose = "generation by vLLM, many points in one engine"
    if importlib.util.find_spec("vllm") is not None:
        return Finding("vllm", "ok", f"{version('vllm')}: {purpose}")
    return Finding("vllm", "missing", purpose, "pip install vllm")


def _hub() -> Finding:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "note", "offline: HF_HUB_OFFLINE is set", "")
    if get_token() is None:
        return Finding("hub", "note", "not logged in", "For --push: `hf auth login`.")
    return Finding("hub", "ok", "logged in")
