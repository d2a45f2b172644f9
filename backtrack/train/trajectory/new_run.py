"""Create the folder of a run that is about to be trained."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from backtrack.errors import RunError
from backtrack.records import Manifest
from backtrack.records.record import installed_versions, now
from backtrack.run.directory import INITIAL, MANIFEST, MODEL_FILES, Run
from backtrack.run.files import sync_folder, write_atomically
from backtrack.run.model_files import GENERATION
from backtrack.train.trajectory.base_model import plain_model, reference_to, write_base
from backtrack.train.trajectory.initializations import save_initial_adapter
from backtrack.train.trajectory.live_method import method_of
from backtrack.train.trajectory.snapshot import is_any_sharded

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from backtrack.recipe import Recipe
    from backtrack.records import BaseModelReference

_LIBRARIES = ("backtrack-llm", "torch", "transformers", "peft", "trl", "safetensors")


def create_run(  # noqa: PLR0913  # the facts a manifest needs
    path: Path,
    model: Any,
    base: BaseModelReference | None,
    *,
    seed: int | None,
    tokenizer: Any = None,
    weights: Mapping[str, Tensor] | None = None,
    recipe: Recipe | None = None,
    recipe_text: str | None = None,
    is_untrained: bool = True,
) -> Run:
    """Create a run's folder atomically: after a kill it is either complete or absent.

    Args:
        path: The folder; it must be absent or empty.
        model: The live model, before training.
        base: Its base; if None, the live weights are written into the run as its base.
        seed: The training seed.
        tokenizer: The run's tokenizer, if it is not the base's.
        weights: The live model's tensors in full if it is sharded.
        recipe: The recipe the run is trained from, if any.
        recipe_text: The recipe as the user wrote it.
        is_untrained: No step has been taken.
    """
    staging = path.with_name(f".{path.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        if base is None:
            write_base(model, tokenizer, staging / "base", weights=weights)
            base = reference_to(staging / "base").model_copy(
                update={"model": str(path.resolve() / "base")}
            )
        architecture = type(plain_model(model)).__name__
        manifest = Manifest(
            name=path.name,
            base=base.model_copy(update={"architecture": architecture}),
            method=method_of(model),
            seed=seed,
            versions=installed_versions(_LIBRARIES),
            created=now(),
        )
        run = Run.create(staging / "run", manifest, recipe, recipe_text, home=path)
        _save_model_files(model, tokenizer, run.path / MODEL_FILES)
        save_initial_adapter(
            model,
            run.path / INITIAL,
            is_untrained=is_untrained,
            is_sharded=is_any_sharded(plain_model(model)),
        )
        if (staging / "base").is_dir():
            (staging / "base").rename(run.path / "base")
        run.path.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Run.open(path)


def _save_model_files(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save how the model generates, and its tokenizer if any; the rest lies in checkpoints."""
    folder.mkdir()
    generation = getattr(plain_model(model), "generation_config", None)
    if generation is not None:
        write_atomically(folder / GENERATION, generation.to_json_string(use_diff=True))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def require_free(path: Path, *, hint: str) -> None:
    """Refuse a path that a run or other files already occupy.

    Args:
        path: The folder of the new run.
        hint: What to do if it is the run the user meant, for the message.

    Raises:
        RunError: The path is occupied.
    """
    if (path / MANIFEST).exists():
        raise RunError(f"{path} already holds a run. Use another name, or {hint}.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} contains other files and no run. Use another name.")
