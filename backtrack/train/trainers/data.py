"""Training data in one of the shapes TRL trains on, checked item by item.

For supervised training prompt and completion (the loss is on the completion), chat messages, or
plain text: the first of these that the data has. Only those columns are kept; what else a file
holds may be of any shape.
For training by rewards: prompts, with the right answers beside them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from pyarrow import ArrowInvalid, ArrowTypeError

from backtrack.errors import ObjectiveError, UsageError
from backtrack.evaluate.objectives.documents import load_records, render
from backtrack.recipe import PythonReward, nearest
from backtrack.train.trainers.rewards import VerifiedReward, reward_function

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.recipe import DataSection

Record = dict[str, Any]
_log = logging.getLogger(__name__)
_RIDERS = ("tools", "chat_template_kwargs")


def load_training_data(
    section: DataSection, tokenizer: Any, *, text_field: str = "text", is_eval: bool = False
) -> Dataset:
    """Load what a recipe's `data` names.

    Args:
        section: The section.
        tokenizer: Of the model; chat messages need its chat template.
        text_field: Column of plain text.
        is_eval: The data to evaluate on during training, not that to train on.

    Raises:
        UsageError: The data cannot be read, or an item lacks what its shape needs.
    """
    path, records = _records(section, is_eval=is_eval)
    if section.prompt is not None:
        if section.completion is None:
            raise UsageError("data: give both `prompt` and `completion`, or neither")
        prompts = _rendered(section.prompt, records, path)
        completions = _rendered(section.completion, records, path)
        records = [
            {"prompt": prompt, "completion": completion}
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
    columns = _columns(records[0], path, text_field)
    shaped = [_shaped(r, columns, f"{path}, item {i}") for i, r in enumerate(records)]
    if section.chat:
        shaped = [_as_chat(record, section.system) for record in shaped]
    if isinstance(shaped[0][columns[0]], list):
        _require_chat_template(tokenizer, shaped[0], columns, path)
    elif tokenizer.eos_token is None:
        raise UsageError(
            "the tokenizer has no end-of-sequence token, which each example ends with. "
            "Name one of its tokens: `sft: {eos_token: ...}`."
        )
    return Dataset.from_list(shaped)


def load_prompts(
    section: DataSection, tokenizer: Any, rewards: Sequence[Any], *, is_eval: bool = False
) -> Dataset:
    """Load prompts for training by rewards, each with the answers that the rewards know.

    Args:
        section: The recipe's `data`.
        tokenizer: Of the model; chats need its chat template.
        rewards: Of the recipe.
        is_eval: The data to evaluate on during training, not that to train on.

    Returns:
        Columns `prompt`, an answer column a reward that has one, and, where a function of the
        user's is among the rewards, every field of the data.

    Raises:
        UsageError: The data cannot be read, or an answer cannot.
    """
    path, records = _records(section, is_eval=is_eval)
    if section.prompt is not None:
        shaped: list[Record] = [{"prompt": p} for p in _rendered(section.prompt, records, path)]
    elif "prompt" in records[0]:
        shaped = [_shaped(r, ("prompt",), f"{path}, item {i}") for i, r in enumerate(records)]
    else:
        raise UsageError(
            f"data: {path} has the columns {', '.join(records[0])}, but no `prompt`."
            f"{nearest('prompt', records[0])} Say how to make it: "
            '`data: {prompt: "{question}"}`.'
        )
    if section.chat:
        shaped = [_as_chat(record, section.system) for record in shaped]
    if isinstance(shaped[0]["prompt"], list):
        _require_chat_template(tokenizer, shaped[0], ("prompt",), path)
    dropped: set[int] = set()
    for reward in rewards:
        dropped |= _add_answers(shaped, records, reward, path)
    shaped, records = _without(shaped, dropped), _without(records, dropped)
    if not shaped:
        raise UsageError(f"data: {path}: no item has an answer that the rewards can read.")
    if any(isinstance(reward, PythonReward) for reward in rewards):
        shaped = [{**record, **row} for record, row in zip(records, shaped, strict=True)]
    try:
        return Dataset.from_list(shaped)
    except (ArrowInvalid, ArrowTypeError) as error:
        raise UsageError(
            f"data: {path}: a field is not of one type in all items ({error}). Rewards by "
            "functions are given every field; make it one type, or leave it out."
        ) from error


def _add_answers(
    shaped: list[Record], records: Sequence[Record], reward: Any, path: str
) -> set[int]:
    """Put a reward's answers beside the prompts; where items may be dropped, say which to drop."""
    function = reward_function(reward)
    if not isinstance(function, VerifiedReward) or not function.column:
        return set()
    dropped: set[int] = set()
    answers = _rendered(reward.answer, records, path)
    for i, (row, answer) in enumerate(zip(shaped, answers, strict=True)):
        row[function.column] = answer
        try:
            function.require_readable(answer, f"{path}, item {i}")
        except UsageError:
            if reward.unreadable == "refuse":
                raise
            dropped.add(i)
    if dropped:
        _log.warning(
            "%s: %d of %d items are dropped: %s reads no answer there",
            path, len(dropped), len(records), reward.name,
        )  # fmt: skip
    return dropped


def _without(items: Sequence[Record], dropped: set[int]) -> list[Record]:
    return [item for i, item in enumerate(items) if i not in dropped]


def _records(section: DataSection, *, is_eval: bool) -> tuple[str, list[Record]]:
    path, split, subset = section.train, section.split, section.subset
    if is_eval:
        path = section.eval or section.train
        split = section.eval_split or "test"
        subset = section.subset if path == section.train else None
    try:
        return path, load_records(path, subset, split)
    except ObjectiveError as error:
        raise UsageError(f"data: {error}") from error


def _rendered(form: str, records: Sequence[Record], path: str) -> list[str]:
    try:
        return [render(form, record, f"{path}, item {i}") for i, record in enumerate(records)]
    except ObjectiveError as error:
        raise UsageError(f"data: {error}") from error


def _as_chat(record: Record, system: str | None) -> Record:
    """Text of a prompt, and of a completion if there is one, as turns."""
    if isinstance(record.get("prompt"), list) or "prompt" not in record:
        return record
    turns = [{"role": "system", "content": system}] if system is not None else []
    chat = {**record, "prompt": [*turns, {"role": "user", "content": record["prompt"]}]}
    if "completion" in record:
        chat["completion"] = [{"role": "assistant", "content": record["completion"].strip()}]
    return chat


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
