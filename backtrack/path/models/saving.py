"""Write a placed model in the format that stock PEFT, transformers and vLLM load.

Exports are written by this module, and so are the files that a vLLM engine measures.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from peft import PeftModel, PeftType
from safetensors.torch import save_file
from transformers import GenerationConfig

from backtrack.path.adapters.rewritten_base import uniform_lora
from backtrack.path.models.embeddings import untied
from backtrack.path.models.loading import read_adapter_config
from backtrack.records.adapter_config import ADAPTER_CONFIG, in_order
from backtrack.run.checkpoint_reader import read_tensors
from backtrack.run.files import write_atomically
from backtrack.run.model_files import CONFIG, GENERATION, ModelFiles

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_SHARD = "5GB"
"""Largest file of a written model, as `save_pretrained` takes it."""


def save_model(model: Any, folder: Path, base: str, *, is_untied: bool = False) -> None:
    """Write a model at its current point: the adapter of a `PeftModel`, else the whole model.

    Args:
        model: The live model of a placement.
        folder: Folder to write into; created if missing.
        base: Hub name or folder of the base, for the adapter's configuration: the one in the
            checkpoint's may no longer be there.
        is_untied: Write a head that is tied to the embedding as a separate tensor, and record it
            as untied in config.json.
    """
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            config.base_model_name_or_path = base
        model.save_pretrained(str(folder))
        _make_uniform(folder)
        sort_names(folder)
        return
    with untied(model) if is_untied else nullcontext():
        save_whole_model(model, folder, max_shard_size=MAX_SHARD)


def save_whole_model(model: Any, folder: Path, **options: Any) -> None:
    """Save a plain model as stock transformers does, with its generation config as it is.

    transformers loads a generation config whose settings contradict each other (a temperature
    without sampling), but refuses to save it.

    Args:
        model: A transformers model.
        folder: Folder to write into; created if missing.
        options: Passed on to `save_pretrained`.
    """
    config = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        model.save_pretrained(folder, **options)
    finally:
        model.generation_config = config
    if config is not None:
        config.to_json_file(folder / "generation_config.json", keys_to_pop=["compile_config"])


def sort_names(folder: Path) -> None:
    """Rewrite the configurations of a folder's adapters, so that those of equal ones are equal.

    PEFT writes the names of a set in an order that differs from process to process.
    """
    for path in folder.rglob(ADAPTER_CONFIG):
        config = in_order(json.loads(path.read_bytes()))
        path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def save_files(files: ModelFiles, generation: Mapping[str, Any], folder: Path) -> None:
    """Write what a run's model needs besides weights and configuration, as it was trained.

    Args:
        files: The files of the run's model.
        generation: Content of generation_config.json.
        folder: Folder to write into; created if missing.
    """
    kept = {name: path for name, path in files.paths.items() if name != CONFIG}
    ModelFiles(kept).write(folder)
    write_atomically(folder / GENERATION, json.dumps(generation, indent=2) + "\n")


def _make_uniform(folder: Path) -> None:
    """Rewrite a LoRA with patterns to one rank and scaling, which every release of vLLM reads.

    Releases before 0.32 silently ignore `rank_pattern` and `alpha_pattern`.
    """
    config: Any = read_adapter_config(folder)
    if config.peft_type != PeftType.LORA or not (config.rank_pattern or config.alpha_pattern):
        return
    if config.target_parameters:
        return  # the rank of a factor on stacked experts includes the number of experts
    uniform, tensors = uniform_lora(config, read_tensors(folder))
    path = folder / "adapter_model.safetensors"
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, metadata={"format": "pt"})
    uniform.save_pretrained(str(folder))
