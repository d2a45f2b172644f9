"""Where an answer ends, and which examples are too long to train on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

_log = logging.getLogger(__name__)


def tokenized(rows: Dataset, tokenizer: Any) -> Dataset:
    """Chat prompts with their answers as tokens; the end-of-sequence token ends each answer.

    Prompt and answer are made into tokens one by one, so that no token spans both. The loss is on
    the answer and its end.

    Args:
        rows: Columns `prompt` and `completion`, lists of turns.
        tokenizer: A tokenizer with a chat template and an end-of-sequence token.

    Returns:
        Columns `input_ids` and `completion_mask`, which TRL trains on as they are.
    """

    def of_row(row: dict[str, Any]) -> dict[str, list[int]]:
        text = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, tokenize=False
        )
        answer = row["completion"][0]["content"] + tokenizer.eos_token
        prompt_ids, answer_ids = (
            tokenizer(each, add_special_tokens=False)["input_ids"] for each in (text, answer)
        )
        mask = [0] * len(prompt_ids) + [1] * len(answer_ids)
        return {"input_ids": prompt_ids + answer_ids, "completion_mask": mask}

    return rows.map(of_row, remove_columns=rows.column_names)


def drop_overlong(trainer: Any, max_length: int) -> None:
    """Leave out of a trainer's data the examples of more than `max_length` tokens."""
    for name in ("train_dataset", "eval_dataset"):
        rows = getattr(trainer, name)
        if rows is None:
            continue
        kept = rows.filter(lambda row: len(row["input_ids"]) <= max_length)
        if len(kept) < len(rows):
            _log.warning(
                "%s: dropped %d of %d examples of more than max_length=%d tokens",
                name, len(rows) - len(kept), len(rows), max_length,
            )  # fmt: skip
        setattr(trainer, name, kept)
