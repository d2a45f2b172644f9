"""How many tokens an objective reads and writes an item, told without the base's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from backtrack.errors import BacktrackError
from backtrack.evaluate.objectives.documents import load_records, render
from backtrack.recipe import ExamplesObjective, LmEvalObjective, TextObjective
from backtrack.train.plan.shapes import CHARACTERS_A_TOKEN, TASKS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backtrack.recipe import BaseSection, Objective


def tokens_an_item(objective: Objective, base: BaseSection) -> float | None:
    """Tokens read and written at most for one item; none where its documents are not at hand."""
    match objective:
        case LmEvalObjective():
            shape = TASKS.get(objective.task)
            if shape is None:
                return None
            read = shape.read_bare if objective.num_fewshot == 0 else shape.read
            written = objective.max_gen_toks if shape.written and objective.max_gen_toks else None
            return read / CHARACTERS_A_TOKEN + (written or shape.written)
        case TextObjective():
            return float(objective.window_tokens)
        case ExamplesObjective():
            return _tokens_an_example(objective, base)
        case _:
            return None


def _tokens_an_example(objective: ExamplesObjective, base: BaseSection) -> float | None:
    """Mean over the first documents, by the base's tokenizer where it is at hand."""
    if not Path(objective.path).exists():
        return None
    try:
        records = load_records(objective.path, objective.subset, objective.split)[:100]
        prompts = [render(objective.prompt, r, objective.path) for r in records]
        answers = [_answers(objective, r) for r in records]
    except BacktrackError:
        return None
    count = _counter(base)
    read = sum(map(count, prompts)) / len(prompts)
    if objective.score == "exact_match":
        return read + objective.max_new_tokens
    more = sum(sum(map(count, texts)) for texts in answers) / len(answers)
    each = sum(map(len, answers)) / len(answers)
    return each * read + more


def _answers(objective: ExamplesObjective, record: Mapping[str, Any]) -> list[str]:
    if objective.score == "choice":
        return [str(choice) for choice in record[objective.choices]]
    if objective.score == "exact_match":
        return []
    return [render(objective.completion, record, objective.path)]


def _counter(base: BaseSection) -> Callable[[str], float]:
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(base.model, local_files_only=True)
    except (OSError, ValueError):
        return lambda text: len(text) / CHARACTERS_A_TOKEN
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
