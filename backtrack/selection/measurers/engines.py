"""Start the engine that a recipe names on a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack.errors import UsageError
from backtrack.evaluate.engine import Engine, RunFacts
from backtrack.path.placement import Placement
from backtrack.recipe import SearchSection, TransformersSection

if TYPE_CHECKING:
    from backtrack.recipe import Recipe
    from backtrack.run.directory import Run


def start_engine(run: Run, recipe: Recipe | None, placed: Placement | None = None) -> Engine:
    """The engine of a recipe, at the run's base.

    Args:
        run: A run with at least one checkpoint.
        recipe: Names the engine; None for the model in this process.
        placed: The run's live model, if it is loaded already.

    Raises:
        UsageError: The engine cannot serve the run as asked, or has a model of its own and one in
            this process is given.
        EngineError: The engine does not start, or does not answer as the placed model does.
    """
    settings = recipe.engine if recipe else TransformersSection()
    search = recipe.search if recipe else SearchSection()
    engine_class: type[Engine] = settings.load_implementation()
    if placed is None and recipe is not None:
        folder = run.folder(run.final.step)
        placed = Placement(run, **engine_class.placement_options(recipe.placement, folder))
    elif placed is not None and not settings.is_in_process:
        raise UsageError(
            f"the recipe says `engine: {settings.kind}`, but the placement given is of a model in "
            "this process. Give none, so that the engine is started, or a recipe without it."
        )
    placed = placed or Placement(run)
    return engine_class(
        placed, settings, RunFacts(run.base, run.final, run.path, search.batch_size)
    )
