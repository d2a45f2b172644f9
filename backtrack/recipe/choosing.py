"""The recipe of choosing: what is measured and how a point is chosen, apart from training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from backtrack.errors import RecipeError
from backtrack.recipe.faults import sentence
from backtrack.recipe.loading import override
from backtrack.recipe.model import Recipe
from backtrack.recipe.sections import Section

if TYPE_CHECKING:
    from collections.abc import Sequence


class ChoosingRecipe(Section):
    """What a run is measured and chosen by, where that is not the recipe it was trained by."""

    recipe: Recipe
    """The resolved recipe."""
    changes: tuple[str, ...] = ()
    """Where it comes from and what was set on command lines, such as `--recipe FILE`."""

    def changed(self, overrides: Sequence[str]) -> ChoosingRecipe:
        """With keys set; a change of a key replaces an earlier one of the same key.

        Args:
            overrides: `key.inner=value` strings with values in YAML.

        Raises:
            RecipeError: All mistakes in the overrides.
        """
        raw: dict[str, Any] = self.recipe.model_dump(mode="json")
        faults = [fault for text in overrides for fault in override(raw, text)]
        try:
            recipe = Recipe.model_validate(raw)
        except ValidationError as error:
            faults += [sentence(details) for details in error.errors()]
        if faults:
            raise RecipeError("--set", faults)
        keys = {text.partition("=")[0] for text in overrides}
        kept = [text for text in self.changes if _key(text) not in keys]
        return ChoosingRecipe(recipe=recipe, changes=(*kept, *map(_as_set, overrides)))


def _as_set(override_text: str) -> str:
    return f"--set {override_text}"


def _key(change: str) -> str:
    return change.removeprefix("--set ").partition("=")[0]
