"""Training data is read in each of its shapes, and what is wrong with it is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backtrack.errors import UsageError
from backtrack.recipe import DataSection
from backtrack.train.trainers.data import load_prompts, load_training_data
from tests.models import make_tokenizer

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def written(folder: Path, *records: Any) -> str:
    path = folder / "train.jsonl"
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def load(path: str, **fields: Any) -> list[dict[str, Any]]:
    section = DataSection.model_validate({"train": path, **fields})
    return list(load_training_data(section, make_tokenizer()))


def test_formats_make_prompt_and_completion(tmp_path: Path) -> None:
    path = written(tmp_path, {"question": "1 + 1?", "answer": 2, "rest": [None, {"deep": 1}]})
    assert load(path, prompt="Question: {question}\nAnswer:", completion=" {answer}") == [
        {"prompt": "Question: 1 + 1?\nAnswer:", "completion": " 2"}
    ]


def test_columns_that_are_not_trained_on_may_be_of_any_shape(tmp_path: Path) -> None:
    path = written(tmp_path, {"text": "a", "x": 1}, {"text": "b", "x": "one"}, {"text": "c"})
    assert load(path) == [{"text": "a"}, {"text": "b"}, {"text": "c"}]


@pytest.mark.parametrize(
    ("split", "texts"),
    [
        ("train[2:]", ["2", "3"]),
        ("train[:1]", ["0"]),
        ("train[-1:]", ["3"]),
        ("train[50%:75%]", ["2"]),
    ],
)
def test_a_file_is_sliced_as_datasets_slices(tmp_path: Path, split: str, texts: list[str]) -> None:
    path = written(tmp_path, *({"text": str(i)} for i in range(4)))
    assert [row["text"] for row in load(path, split=split)] == texts


def test_a_folder_in_the_working_directory_wins_over_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "openai" / "gsm8k"
    folder.mkdir(parents=True)
    written(folder, {"text": "local"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert load("openai/gsm8k") == [{"text": "local"}]


def test_chat_needs_a_chat_template(tmp_path: Path) -> None:
    path = written(tmp_path, {"messages": CHAT})
    with pytest.raises(UsageError, match=r"no chat template. Set `sft: \{chat_template_path"):
        load(path)
    section = DataSection(train=written(tmp_path, {"prompt": CHAT[:1]}))
    with pytest.raises(UsageError, match=r"Put a `chat_template.jinja` beside the base's"):
        load_prompts(section, make_tokenizer(), [])


def test_a_template_that_refuses_the_turns_is_quoted(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('turns must alternate') }}"
    section = DataSection(train=written(tmp_path, {"messages": CHAT}))
    with pytest.raises(UsageError, match="turns must alternate"):
        load_training_data(section, tokenizer)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    section = DataSection(train=written(tmp_path, {"text": "a"}))
    with pytest.raises(UsageError, match="end-of-sequence"):
        load_training_data(section, tokenizer)


@pytest.mark.parametrize(
    ("records", "fields", "message"),
    [
        ([{"text": "a"}, "{broken"], {}, r"train\.jsonl line 2 is not JSON"),
        ([{"question": "a", "reply": "b"}], {}, "columns question, reply"),
        ([{"txet": "a"}], {}, "Did you mean 'txet'"),
        (
            [{"question": "a"}],
            {"prompt": "{qestion}", "completion": "x"},
            "no field 'qestion'.*Did you mean 'question'.*It has question",
        ),
        ([{"text": "a"}, {"text": None}], {}, "item 1: `text` must be text, not NoneType"),
        ([{"messages": "hello"}], {}, "item 0: `messages` must be a list of turns"),
        ([{"messages": []}], {}, "item 0: `messages` must be a list of turns"),
        ([{"text": "a"}], {"split": "train[5:]"}, "holds no record"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, records: list[Any], fields: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        load(written(tmp_path, *records), **fields)
