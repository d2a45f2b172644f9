"""Make the directory of a run that is about to be trained."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from backtrack.errors import RunError
from backtrack.records import Manifest
from backtrack.run.directory import INITIAL, MANIFEST, Run, now, sync_folder
from backtrack.train.trajectory.base_model import reference_to, write_base
from backtrack.train.trajectory.initializations import save_initial_adapter
from backtrack.train.trajectory.live_method import method_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from backtrack.recipe import Recipe
    from backtrack.records import BaseModelReference

_LIBRARIES = ("backtrack", "torch", "transformers", "peft", "trl", "safetensors")


def create_run(  # noqa: PLR0913  # one run has that many facts
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
    """Make a run's directory in one stroke: whatever happens, it is there whole or not at all.

    Args:
        path: Where; it must not exist, or be empty.
        model: The live model, before training.
        base: Its base; where none is given the live weights are written into the run.
        seed: Of training.
        tokenizer: Kept beside a base that is written.
        weights: The live model's own tensors in full, where it is sharded.
        recipe: What made the run, if a recipe did.
        recipe_text: The recipe in the user's words.
        is_untrained: Whether training has not begun.
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
        manifest = Manifest(
            name=path.name,
            base=base,
            method=method_of(model),
            seed=seed,
            versions=_versions(),
            created=now(),
        )
        run = Run.create(staging / "run", manifest, recipe, recipe_text)
        save_initial_adapter(
            model, run.path / INITIAL, is_untrained=is_untrained, is_sharded=weights is not None
        )
        if (staging / "base").is_dir():
            (staging / "base").rename(run.path / "base")
        run.path.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Run.open(path)


def require_free(path: Path, *, hint: str) -> None:
    """Refuse a directory that is taken.

    Raises:
        RunError: It holds a run, or other files.
    """
    if (path / MANIFEST).exists():
        raise RunError(f"{path} holds a run already. Take another name, or {hint}.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} is taken by other files and holds no run. Take another name.")


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
