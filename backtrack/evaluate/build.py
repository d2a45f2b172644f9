"""Objectives from a recipe; each kind's module is imported only if the recipe uses it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.recipe import ObjectiveSection, Recipe


def build_objectives(recipe: Recipe, tokenizer: Any) -> tuple[Objective, ...]:
    """The recipe's objectives, in its order.

    Args:
        recipe: Says what is measured.
        tokenizer: The model's, with its chat template.

    Raises:
        ObjectiveError: An objective's documents, formats, task, metric or function are not as
            the recipe says.
    """
    by_kind: dict[type[ObjectiveSection], list[int]] = defaultdict(list)
    for index, section in enumerate(recipe.objectives):
        if not section.borrows_items:
            by_kind[type(section)].append(index)
    built: dict[int, Objective] = {}
    for kind, indices in by_kind.items():
        sections = [recipe.objectives[index] for index in indices]
        objectives = kind.load_implementation().build_all(sections, tokenizer)
        built.update(zip(indices, objectives, strict=True))
    lenders = [o for o in built.values() if o.info.role == "general"]
    for index, section in enumerate(recipe.objectives):
        if section.borrows_items:
            implementation = section.load_implementation()
            built[index] = implementation(section, tokenizer, lenders)
    return tuple(built[index] for index in sorted(built))
