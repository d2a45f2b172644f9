"""How many tokens an objective reads and writes per item, told without the base's weights."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from backtrack.evaluate.objectives.lm_eval_lengths import CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from backtrack.recipe import BaseSection, ObjectiveSection


def tokens_per_item(objective: ObjectiveSection, base: BaseSection) -> float | None:
    """Tokens read and written for one item at most; None if its documents are not at hand."""
    found: float | None = objective.load_implementation().tokens_per_item(
        objective, _counter(base)
    )
    return found


def _counter(base: BaseSection) -> Callable[[str], float]:
    """Tokens of a text: by the base's tokenizer if it is at hand, else by its length."""

    def count(text: str) -> float:
        tokenizer = _tokenizer(base.model)
        if tokenizer is None:
            return len(text) / CHARACTERS_PER_TOKEN
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


@cache
def _tokenizer(model: str) -> Any:
    """The local tokenizer, loaded when the first text is counted; None if there is none."""
    try:
        return AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError):
        return None
