"""Load training data in a format that TRL trains on, checked item by item.

SFT: prompt and completion (the loss is on the completion), chat messages, or plain text; the first
of these whose columns the data has. Other columns are dropped, so they may have any type.
GRPO: prompts, with the correct answers for the rewards.
DPO and ORPO: pairs of a chosen and a rejected answer, with their prompt or beginning with it.
KTO: those, or prompts with one answer each and whether it is desirable.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from pyarrow import ArrowInvalid, ArrowTypeError
from trl.data_utils import extract_prompt, unpair_preference_dataset

from backtrack.errors import ObjectiveError, UsageError
from backtrack.evaluate.objectives.documents import load_records, render
from backtrack.recipe import PythonReward, nearest
from backtrack.train.trainers.rewards import VerifiedReward, reward_function

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.recipe import DataSection, Paradigm

Record = dict[str, Any]
_log = logging.getLogger(__name__)
_PAIR = ("chosen", "rejected")
_LABELED = ("prompt", "completion", "label")
_EXTRA_COLUMNS = ("tools", "chat_template_kwargs")
"""Columns TRL reads beside those of a format."""


def load_training_data(
    section: DataSection, tokenizer: Any, *, text_field: str = "text", is_eval: bool = False
) -> Dataset:
    """Load the SFT data of a recipe.

    Args:
        section: The recipe's `data`.
        tokenizer: The model's tokenizer; chat messages need its chat template.
        text_field: Column of plain text.
        is_eval: Load the evaluation data instead of the training data.

    Raises:
        UsageError: The data cannot be read, or an item lacks a column of its format.
    """
    path, records = _records(section, is_eval=is_eval)
    if section.prompt is not None:
        if section.completion is None:
            raise UsageError("data: give both `prompt` and `completion`, or neither")
        prompts = _render_all(section.prompt, records, path)
        completions = _render_all(section.completion, records, path)
        records = [
            {"prompt": prompt, "completion": completion}
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
    columns = _columns(records[0], path, text_field)
    rows = [_checked(r, columns, f"{path}, item {i}") for i, r in enumerate(records)]
    if section.chat:
        rows = [_as_chat(record, section.system) for record in rows]
    _require_readable(tokenizer, rows, columns, path, "sft")
    return Dataset.from_list(rows)


def load_prompts(
    section: DataSection, tokenizer: Any, rewards: Sequence[Any], *, is_eval: bool = False
) -> Dataset:
    """Load the GRPO data of a recipe: prompts, and the answers its rewards compare with.

    Args:
        section: The recipe's `data`.
        tokenizer: The model's tokenizer; chats need its chat template.
        rewards: The recipe's rewards.
        is_eval: Load the evaluation data instead of the training data.

    Returns:
        A dataset with the column `prompt`, one answer column for each reward that has an answer
        and, if a reward is a function of the user's, all columns of the data.

    Raises:
        UsageError: The data or an answer cannot be read.
    """
    path, records = _records(section, is_eval=is_eval)
    if section.prompt is not None:
        rows: list[Record] = [{"prompt": p} for p in _render_all(section.prompt, records, path)]
    elif "prompt" in records[0]:
        rows = [_checked(r, ("prompt",), f"{path}, item {i}") for i, r in enumerate(records)]
    else:
        raise UsageError(
            f"data: {path} has the columns {', '.join(records[0])}, but no `prompt`."
            f"{nearest('prompt', records[0])} Set a format for it: "
            '`data: {prompt: "{question}"}`.'
        )
    if section.chat:
        rows = [_as_chat(record, section.system) for record in rows]
    if isinstance(rows[0]["prompt"], list):
        _require_chat_template(tokenizer, rows[0], ("prompt",), path, "grpo")
    dropped: set[int] = set()
    for reward in rewards:
        dropped |= _add_answers(rows, records, reward, path)
    rows, records = _without(rows, dropped), _without(records, dropped)
    if not rows:
        raise UsageError(f"data: {path}: no item has an answer that the rewards can read.")
    if any(isinstance(reward, PythonReward) for reward in rewards):
        rows = [{**record, **row} for record, row in zip(records, rows, strict=True)]
    try:
        return Dataset.from_list(rows)
    except (ArrowInvalid, ArrowTypeError) as error:
        raise UsageError(
            f"data: {path}: a field does not have the same type in all items ({error}). Python "
            "rewards receive every field; convert it to one type, or remove it."
        ) from error


def load_preferences(
    section: DataSection, tokenizer: Any, paradigm: Paradigm, *, is_eval: bool = False
) -> Dataset:
    """Load the data of a recipe for DPO, KTO or ORPO.

    Args:
        section: The recipe's `data`; `prompt` and `completion` are formats over other columns, if
            given.
        tokenizer: The model's tokenizer; chats need its chat template.
        paradigm: `dpo`, `kto` or `orpo`.
        is_eval: Load the evaluation data instead of the training data.

    Returns:
        Pairs, in columns `chosen`, `rejected` and, if there is one, `prompt`; for KTO answers one
        by one, in columns `prompt`, `completion` and `label`.

    Raises:
        UsageError: The data cannot be read, or an item lacks a column or is no pair.
    """
    path, records = _records(section, is_eval=is_eval)
    for column in ("prompt", "completion"):
        form = getattr(section, column)
        if form is not None:
            texts = _render_all(form, records, path)
            records = [{**r, column: text} for r, text in zip(records, texts, strict=True)]
    columns = _preference_columns(records[0], paradigm, path)
    rows = [_checked(r, columns, f"{path}, item {i}") for i, r in enumerate(records)]
    has_pairs = "chosen" in columns
    if has_pairs:
        _require_different(rows, path)
    if section.chat:
        rows = [_as_chat(record, section.system) for record in rows]
    _require_readable(tokenizer, rows, columns[:2], path, paradigm)
    data = Dataset.from_list(rows)
    if paradigm != "kto" or not has_pairs:
        return data
    return unpair_preference_dataset(data if "prompt" in columns else data.map(extract_prompt))


def _preference_columns(
    first: Mapping[str, Any], paradigm: Paradigm, path: str
) -> tuple[str, ...]:
    """Columns to train on; the last is that of an answer that was not preferred, or the label."""
    if all(column in first for column in _PAIR):
        return ("prompt", *_PAIR) if "prompt" in first else _PAIR
    if paradigm == "kto" and all(column in first for column in _LABELED):
        return _LABELED
    needed = "`chosen` and `rejected`"
    if paradigm == "kto":
        needed = f"`prompt`, `completion` and `label`, or {needed}"
    missing = next(column for column in (*_PAIR, *_LABELED) if column not in first)
    raise UsageError(
        f"data: {path} has the columns {', '.join(first)}, but `{paradigm}` needs {needed}."
        f"{nearest(missing, first)}"
    )


def _require_different(rows: Sequence[Record], path: str) -> None:
    same = next((i for i, row in enumerate(rows) if row["chosen"] == row["rejected"]), None)
    if same is not None:
        raise UsageError(f"data: {path}, item {same}: `chosen` and `rejected` are the same.")


def _add_answers(
    rows: list[Record], records: Sequence[Record], reward: Any, path: str
) -> set[int]:
    """Add a reward's answers as a column; return the indices of items to drop."""
    function = reward_function(reward)
    if not isinstance(function, VerifiedReward) or not function.column:
        return set()
    dropped: set[int] = set()
    answers = _render_all(reward.answer, records, path)
    for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        row[function.column] = answer
        try:
            function.require_readable(answer, f"{path}, item {i}")
        except UsageError:
            if reward.unreadable == "refuse":
                raise
            dropped.add(i)
    if dropped:
        _log.warning(
            "%s: dropped %d of %d items whose answer the reward %s cannot read",
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


def _render_all(form: str, records: Sequence[Record], path: str) -> list[str]:
    try:
        return [render(form, record, f"{path}, item {i}") for i, record in enumerate(records)]
    except ObjectiveError as error:
        raise UsageError(f"data: {error}") from error


def _as_chat(record: Record, system: str | None) -> Record:
    """Convert a text prompt, and its completion if any, into chat turns."""
    if isinstance(record.get("prompt"), list) or "prompt" not in record:
        return record
    turns = [{"role": "system", "content": system}] if system is not None else []
    chat = {**record, "prompt": [*turns, {"role": "user", "content": record["prompt"]}]}
    for answer in ("completion", *_PAIR):
        if answer in record:
            chat[answer] = [{"role": "assistant", "content": record[answer].strip()}]
    return chat


def _columns(first: Mapping[str, Any], path: str, text_field: str) -> tuple[str, ...]:
    for columns in (("prompt", "completion"), ("messages",), (text_field,)):
        if all(column in first for column in columns):
            return columns
    raise UsageError(
        f"data: {path} has the columns {', '.join(first)}, but training needs `prompt` and "
        f"`completion`, or `messages`, or `{text_field}`.{nearest(text_field, first)} "
        'Set formats for them: `data: {prompt: "{question}", completion: " {answer}"}`.'
    )


def _checked(record: Mapping[str, Any], columns: tuple[str, ...], where: str) -> Record:
    for column in columns:
        value = record.get(column)
        if column == "label":
            if not isinstance(value, bool):
                raise UsageError(
                    f"data: {where}: `label` must be true for a desirable answer or false, not "
                    f"{value!r}."
                )
        elif column == "messages" or isinstance(value, list):
            _require_messages(value, column, where)
        elif not isinstance(value, str):
            raise UsageError(
                f"data: {where}: `{column}` must be text, not {type(value).__name__}. "
                f"It has the columns {', '.join(record)}."
            )
    extra = [column for column in _EXTRA_COLUMNS if column in record]
    return {column: record[column] for column in [*columns, *extra]}


def _require_messages(value: object, column: str, where: str) -> None:
    is_chat = isinstance(value, list) and all(
        isinstance(turn, dict) and "role" in turn and "content" in turn for turn in value
    )
    if not is_chat or not value:
        raise UsageError(
            f"data: {where}: `{column}` must be a list of turns such as "
            '{"role": "user", "content": "..."}.'
        )


def _require_readable(
    tokenizer: Any, rows: Sequence[Record], columns: tuple[str, ...], path: str, paradigm: Paradigm
) -> None:
    """Refuse chats without a chat template, and texts that no token can end."""
    if isinstance(rows[0][columns[0]], list):
        _require_chat_template(tokenizer, rows[0], columns, path, paradigm)
    elif tokenizer.eos_token is None:
        remedy = "Set one of its tokens: `sft: {eos_token: ...}`."
        if paradigm != "sft":
            remedy = "Add one to the base's `tokenizer_config.json`."
        raise UsageError(
            "the tokenizer has no end-of-sequence token, which must end each example. " + remedy
        )


def _require_chat_template(
    tokenizer: Any, first: Record, columns: tuple[str, ...], path: str, paradigm: Paradigm
) -> None:
    if not tokenizer.chat_template:
        remedy = "Put a `chat_template.jinja` beside the base's tokenizer"
        if paradigm == "sft":
            remedy = "Set `sft: {chat_template_path: FILE.jinja}`"
        raise UsageError(
            f"data: {path} contains chat messages, but the tokenizer has no chat template. "
            f"{remedy}, or make plain texts by `data.prompt` and `data.completion`."
        )
    turns = [turn for column in columns for turn in first[column]]
    try:
        tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:  # a template may raise anything
        raise UsageError(
            f"data: {path}: the chat template refuses the first item: "
            f"{' '.join(str(error).split())}"
        ) from error
