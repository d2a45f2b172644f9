"""Objectives from a recipe. Heavy libraries are imported only where the recipe needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backtrack.evaluate.objectives.items import digest
from backtrack.recipe import (
    ExamplesObjective,
    LmEvalObjective,
    PythonObjective,
    TextObjective,
    VllmEngine,
)

if TYPE_CHECKING:
    from backtrack.evaluate.objectives.lm_eval_task import Harness
    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.recipe import Recipe


def build_objectives(recipe: Recipe, tokenizer: Any) -> tuple[Objective, ...]:
    """The recipe's objectives, in its order.

    Documents are read, rendered and checked here, so most faults show before a model is loaded.

    Args:
        recipe: Says what is measured, and the batch size (`search.batch_size`).
        tokenizer: The model's, with its chat template.

    Raises:
        ObjectiveError: An objective's documents, formats, task, metric or function are not as
            the recipe says.
    """
    harness = _harness(recipe, tokenizer)
    built = tuple(
        _build(settings, tokenizer, recipe.search.batch_size, harness)
        for settings in recipe.objectives
    )
    if isinstance(recipe.engine, VllmEngine):
        for objective in built:
            # Scores of two engines differ, so they are scores of two objectives.
            fingerprint = digest(objective.info.fingerprint, recipe.engine.decides)
            objective.info = objective.info.model_copy(update={"fingerprint": fingerprint})
    return built


def _harness(recipe: Recipe, tokenizer: Any) -> Harness | None:
    """What all `lm_eval` objectives share; none where there are none, as lm-eval loads slowly."""
    asked = [o for o in recipe.objectives if isinstance(o, LmEvalObjective)]
    if not asked:
        return None
    from backtrack.evaluate.objectives.lm_eval_task import Harness

    paths = [o.include_path for o in asked if o.include_path is not None]
    return Harness(tokenizer, recipe.search.batch_size, paths)


def _build(
    settings: LmEvalObjective | ExamplesObjective | TextObjective | PythonObjective,
    tokenizer: Any,
    batch_size: int,
    harness: Harness | None,
) -> Objective:
    match settings:
        case LmEvalObjective():
            from backtrack.evaluate.objectives.lm_eval_task import TaskScores

            assert harness is not None
            return TaskScores(settings, harness)
        case ExamplesObjective():
            from backtrack.evaluate.objectives.examples import ExampleScores

            return ExampleScores(settings, tokenizer, batch_size)
        case TextObjective():
            from backtrack.evaluate.objectives.text import BitsPerByte

            return BitsPerByte(settings, tokenizer, batch_size)
        case PythonObjective():
            from backtrack.evaluate.objectives.function import FunctionScores

            return FunctionScores(settings)
