"""Training data in one of the three shapes TRL trains on, checked item by item.

Prompt and completion (the loss is on the completion), chat messages, or plain text: the first of
these that the data has. Only those columns are kept; what else a file holds may be of any shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasets import Dataset

from backtrack.errors import ObjectiveError, UsageError
from backtrack.evaluate.documents import load_records, render
from backtrack.recipe import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.recipe import DataSection

Record = dict[str, Any]
_RIDERS = ("tools", "chat_template_kwargs")


def load_training_data(
    section: DataSection, tokenizer: Any, *, text_field: str = "text"
) -> Dataset:
    """Load what a recipe's `data` names.

    Args:
        section: The section.
        tokenizer: Of the model; chat messages need its chat template.
        text_field: Column of plain text.

    Raises:
        UsageError: The data cannot be read, or an item lacks what its shape needs.
    """
    try:
        records = load_records(section.train, section.subset, section.split)
        if section.prompt is not None and section.completion is not None:
            records = _formatted(records, section.prompt, section.completion, section.train)
    except ObjectiveError as error:
        raise UsageError(f"data: {error}") from error
    columns = _columns(records[0], section.train, text_field)
    shaped = [_shaped(r, columns, f"{section.train}, item {i}") for i, r in enumerate(records)]
    if isinstance(shaped[0][columns[0]], list):
        _require_chat_template(tokenizer, shaped[0], columns, section.train)
    elif tokenizer.eos_token is None:
        raise UsageError(
            "the tokenizer has no end-of-sequence token, which each example ends with. "
            "Name one of its tokens: `sft: {eos_token: ...}`."
        )
    return Dataset.from_list(shaped)


def _formatted(records: Sequence[Record], prompt: str, completion: str, path: str) -> list[Record]:
    return [
        {
            "prompt": render(prompt, record, f"{path}, item {index}"),
            "completion": render(completion, record, f"{path}, item {index}"),
        }
        for index, record in enumerate(records)
    ]


def _columns(first: Mapping[str, Any], path: str, text_field: str) -> tuple[str, ...]:
    for columns in (("prompt", "completion"), ("messages",), (text_field,)):
        if all(column in first for column in columns):
            return columns
    raise UsageError(
        f"data: {path} has the columns {', '.join(first)}, but training needs `prompt` and "
        f"`completion`, or `messages`, or `{text_field}`.{nearest(text_field, first)} "
        'Say how to make them: `data: {prompt: "{question}", completion: " {answer}"}`.'
    )


def _shaped(record: Mapping[str, Any], columns: tuple[str, ...], where: str) -> Record:
    for column in columns:
        value = record.get(column)
        if column == "messages" or isinstance(value, list):
            _require_messages(value, column, where)
        elif not isinstance(value, str):
            raise UsageError(
                f"data: {where}: `{column}` must be text, not {type(value).__name__}. "
                f"It has the columns {', '.join(record)}."
            )
    kept = [*columns, *(rider for rider in _RIDERS if rider in record)]
    return {column: record[column] for column in kept}


def _require_messages(value: object, column: str, where: str) -> None:
    is_chat = isinstance(value, list) and all(
        isinstance(turn, dict) and "role" in turn and "content" in turn for turn in value
    )
    if not is_chat or not value:
        raise UsageError(
            f"data: {where}: `{column}` must be a list of turns such as "
            '{"role": "user", "content": "..."}.'
        )


def _require_chat_template(
    tokenizer: Any, first: Record, columns: tuple[str, ...], path: str
) -> None:
    if not tokenizer.chat_template:
        raise UsageError(
            f"data: {path} holds chat messages, but the tokenizer has no chat template. Give one, "
            "`sft: {chat_template_path: FILE.jinja}`, or make texts with `data.prompt` and "
            "`data.completion`."
        )
    turns = [turn for column in columns for turn in first[column]]
    try:
        tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # a template raises what it likes
        raise UsageError(
            f"data: {path}: the chat template refuses the first item: "
            f"{' '.join(str(error).split())}"
        ) from error
