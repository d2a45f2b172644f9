"""The recipe that a run is measured and chosen by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backtrack.errors import UsageError
from backtrack.recipe import ChoosingRecipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.recipe import Recipe
    from backtrack.records import BaseModelReference
    from backtrack.run.directory import Run


def choose_by(run: Run, recipe: Recipe, changes: Sequence[str] = ()) -> None:
    """Measure and choose by a recipe from now on. The recipe of training stays as it is.

    Args:
        run: The run.
        recipe: The resolved recipe.
        changes: Where it comes from, such as `--recipe FILE`.

    Raises:
        UsageError: It names another base than the run was trained from.
    """
    if run.choosing is not None and run.choosing.recipe == recipe:
        return
    _require_same_base(run, recipe)
    run.choose_by(ChoosingRecipe(recipe=recipe, changes=tuple(changes)))


def _require_same_base(run: Run, recipe: Recipe) -> None:
    section, base = recipe.base, run.base
    differing = [
        f"`base.{key}` is {asked}, the run's is {own}"
        for key, asked, own in (
            ("revision", section.revision, base.revision),
            ("dtype", section.dtype, base.dtype),
            ("quantization", section.quantization, base.quantization),
        )
        if asked not in (None, "auto", own)
    ]
    if not _is_same_model(section.model, base):
        differing.insert(0, f"`base.model` is {section.model}, the run's is {base.model}")
    if differing:
        raise UsageError(
            f"the recipe has another base than {run.path}: {'; '.join(differing)}. A run is "
            "measured from the base it was trained from: correct `base` in the recipe, or adopt "
            "the checkpoints with that base."
        )


def _is_same_model(model: str, base: BaseModelReference) -> bool:
    """Whether a recipe's name is the run's base: by name, by folder, or by its weights."""
    if model == base.model:
        return True
    if not Path(model).is_dir():
        return False
    if Path(base.model).is_dir() and Path(model).samefile(base.model):
        return True
    from backtrack.run.checkpoint_reader import fingerprint

    return bool(base.fingerprint) and fingerprint(Path(model)) == base.fingerprint
