from __future__ import annotations

import json
import random
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from backtrack.demo import ASSETS
from backtrack.evaluate.build import build_objectives
from backtrack.recipe import DataSection, Recipe
from backtrack.selection.choice.select import select
from backtrack.selection.measure.contamination import (
    SHARED,
    SharedItems,
    contamination_notes,
    find_shared,
    training_data,
)
from tests.selection.fakes import FakeEngine, make_recipe, make_run, pair

LONG = (
    "A farmer has twelve cows and sells three of them to a neighbour who already owns seven cows "
    "and two horses"
)

TURN = {"role": "user", "content": "What is 2 + 3?"}


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(ASSETS / "model")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def recipe_of(tmp_path: Path, train: list[str], asked: list[str], **data: Any) -> Recipe:
    train_rows = [{"prompt": text, "completion": " 1"} for text in train]
    item_rows = [{"prompt": text, "completion": " 1"} for text in asked]
    objectives = [
        {"kind": "examples", "role": role, "name": name, "path": write(tmp_path / name, item_rows)}
        for role, name in (("target", "sums.jsonl"), ("general", "prose.jsonl"))
    ]
    return Recipe.model_validate(
        {
            "name": "toy",
            "base": "toy",
            "data": {"train": write(tmp_path / "train.jsonl", train_rows), **data},
            "objectives": objectives,
        }
    )


def compare(recipe: Recipe) -> SharedItems:
    return find_shared(recipe.data, build_objectives(recipe, tokenizer()))


def found_in(recipe: Recipe) -> dict[str, list[str]]:
    """Shared items by objective's name, of objectives that have some."""
    compared = compare(recipe)
    assert not compared.failure
    return {name: list(ids) for name, ids in compared.items.items() if ids}


def shared(tmp_path: Path, train: list[str], asked: list[str]) -> list[str]:
    return found_in(recipe_of(tmp_path, train, asked)).get("sums.jsonl", [])


def shared_with_rows(tmp_path: Path, rows: list[dict[str, Any]], asked: list[str]) -> list[str]:
    recipe = recipe_of(tmp_path, ["unused"], asked)
    write(tmp_path / "train.jsonl", rows)
    return found_in(recipe).get("sums.jsonl", [])


def test_the_same_prompt_is_found_whatever_its_case_and_punctuation(tmp_path: Path):
    assert shared(tmp_path, ["What is 2 + 3?"], ["what is 2 + 3", "What is 2 + 4?"]) == [
        "sums.jsonl/0"
    ]


def test_a_long_prompt_within_an_example_is_found(tmp_path: Path):
    train = [f"Solve this. {LONG}. How many cows?"]
    assert shared(tmp_path, train, [LONG + ".", LONG.replace("twelve", "nine")]) == [
        "sums.jsonl/0"
    ]


def test_short_prompts_that_share_words_only_are_not(tmp_path: Path):
    assert (
        shared(tmp_path, ["Tom has 3 apples and buys 5."], ["Tom has 4 apples and buys 5."]) == []
    )


@pytest.mark.parametrize(
    "text",
    [
        *["1", "yes", "New York", "The Great Gatsby", "12 May 2020", "12 + 5 = ", "3.14159265"],
        *["17 4 2021 99", "x 1 2 3 4", " ".join(map(str, range(40))), "... !?", ""],
    ],
)
def test_equal_prompts_that_are_short_or_numeric_are_not_shared(tmp_path: Path, text: str):
    assert shared(tmp_path, [text, f"Count: {text} and on"], [text]) == []


@pytest.mark.parametrize(
    "text",
    [
        "What is 2 + 3?",
        "Capital of France is",
        "x plus 2 equals",
        "\u5c0f\u660e\u6709\u4e94\u4e2a\u82f9\u679c",
    ],
)
def test_equal_prompts_of_a_few_words_are_shared(tmp_path: Path, text: str):
    assert shared(tmp_path, [text], [text]) == ["sums.jsonl/0"]


def test_four_fifths_of_the_runs_of_words_must_occur(tmp_path: Path):
    words = [f"word{number}" for number in range(22)]  # ten runs of thirteen words
    asked = [" ".join(words)]
    assert shared(tmp_path, ["Before " + " ".join(words[:20])], asked) == ["sums.jsonl/0"]
    assert shared(tmp_path, ["Before " + " ".join(words[:19])], asked) == []


def test_runs_of_words_that_are_spread_over_examples_count_together(tmp_path: Path):
    words = [f"word{number}" for number in range(22)]
    train = [" ".join(["Before", *words[:17]]), " ".join([*words[5:], "after"])]
    assert shared(tmp_path, train, [" ".join(words)]) == ["sums.jsonl/0"]


def test_a_run_of_words_does_not_go_on_in_the_next_example(tmp_path: Path):
    words = LONG.split()
    assert shared(tmp_path, [" ".join(words[:10]), " ".join(words[10:])], [LONG]) == []


def test_a_text_that_goes_on_from_the_prompt_into_the_completion_is_shared(tmp_path: Path):
    words = LONG.split()
    row = {"prompt": " ".join(words[:10]), "completion": " " + " ".join(words[10:]) + " too"}
    assert shared_with_rows(tmp_path, [row], [LONG]) == ["sums.jsonl/0"]


@pytest.mark.parametrize(
    "row",
    [
        {
            "messages": [
                {"role": "user", "content": "What is 2 + 3?"},
                {"role": "a", "content": "5"},
            ]
        },
        {"prompt": [{"role": "user", "content": "What is 2 + 3?"}], "completion": "5"},
        {"question": "What is 2 + 3?", "answer": "5", "level": 1},
        {"text": None, "prompt": "What is 2 + 3?"},
        {"a column of its own": "What is 2 + 3?", "number": 5},
    ],
)
def test_chat_turns_and_columns_of_any_name_are_compared(tmp_path: Path, row: dict[str, Any]):
    assert shared_with_rows(tmp_path, [row], ["What is 2 + 3?"]) == ["sums.jsonl/0"]


def test_prompts_are_compared_as_the_recipe_formats_them(tmp_path: Path):
    recipe = recipe_of(tmp_path, ["2 + 3"], ["What is 2 + 3?"], prompt="What is {prompt}?")
    assert found_in(recipe) == {name: [f"{name}/0"] for name in ("sums.jsonl", "prose.jsonl")}


def test_text_with_lone_surrogates_is_compared(tmp_path: Path):
    text = "Who wrote this \ud800 odd book"
    assert shared(tmp_path, [text], [text, text + " again"]) == ["sums.jsonl/0"]


def test_only_the_slice_that_was_trained_on_is_compared(tmp_path: Path):
    prompts = ["Who keeps the horses?", "Who keeps the cows?"]
    recipe = recipe_of(tmp_path, prompts, prompts, split="train[1:]")
    assert found_in(recipe)["sums.jsonl"] == ["sums.jsonl/1"]


def test_data_that_cannot_be_read_is_unknown_and_not_clean(tmp_path: Path):
    recipe = recipe_of(tmp_path, ["a"], ["a"])
    (tmp_path / "train.jsonl").unlink()
    assert "train.jsonl" in compare(recipe).failure


def test_what_was_found_before_data_became_unreadable_is_kept(tmp_path: Path):
    prompts = ["Who keeps the horses?", "Who keeps the cows?"]
    recipe = recipe_of(tmp_path, prompts, prompts)
    path = tmp_path / "train.jsonl"
    path.write_text(
        path.read_text()
        .replace('"completion": " 1"}', '"completion": " 1"', 2)
        .replace('" 1"\n', '" 1"}\n', 1)
    )
    compared = compare(recipe)
    assert "train.jsonl line 2 is not JSON" in compared.failure
    assert compared.items["sums.jsonl"] == ("sums.jsonl/0",)


def test_data_without_text_is_unknown_and_not_clean(tmp_path: Path):
    recipe = recipe_of(tmp_path, ["a"], ["a"])
    write(tmp_path / "train.jsonl", [{"prompt": None, "number": 3}])
    assert "no column of text" in compare(recipe).failure


def test_a_format_that_does_not_fit_the_data_is_unknown_and_not_clean(tmp_path: Path):
    recipe = recipe_of(tmp_path, ["a"], ["a"], prompt="{question}")
    assert "has no field 'question'" in compare(recipe).failure


def test_windows_of_text_that_was_trained_on_are_found(tmp_path: Path):
    (tmp_path / "prose.txt").write_text(f"{LONG}. " * 12 + "Ships sail at dawn. " * 90)
    recipe = recipe_of(tmp_path, [f"{LONG}. " * 12], [LONG])
    prose = {"kind": "text", "role": "general", "path": str(tmp_path / "prose.txt")}
    text = {"window_tokens": 160, "name": "prose", **prose}
    objectives = [recipe.objectives[0].model_dump(), text]
    found = found_in(Recipe.model_validate({**recipe.model_dump(), "objectives": objectives}))
    assert found["prose"][0] == "prose/0"
    assert "prose/1" in found["prose"]
    assert not {"prose/6", "prose/10"} & set(found["prose"])


@pytest.mark.slow
def test_documents_of_a_task_that_were_trained_on_are_found(tmp_path: Path):
    asked = [f"{LONG}. How many cows?", "How many legs has a cow?", "Who keeps the horses?"]
    documents = write(tmp_path / "cows.jsonl", [{"q": text, "a": "9"} for text in asked])
    task = {
        "task": "cows",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": documents}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "Question: {{q}}\nAnswer:",
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "cows.yaml").write_text(yaml.safe_dump(task))
    recipe = recipe_of(tmp_path, [f"{LONG}. How many cows?"], ["a"])
    cows = {"kind": "lm_eval", "role": "general", "task": "cows", "metric": "exact_match"}
    objectives = [
        recipe.objectives[0].model_dump(),
        {**cows, "include_path": str(tmp_path)},
    ]
    made = Recipe.model_validate({**recipe.model_dump(), "objectives": objectives})
    assert found_in(made) == {"cows": ["cows/0"]}


def peak_bytes(tmp_path: Path, num_examples: int) -> int:
    """Peak memory of comparing 50 items with examples of 150 words, 5% of them shared."""
    draw = random.Random(0)
    words = [f"{draw.getrandbits(32):x}" for _ in range(5000)]
    train = [" ".join(draw.choices(words, k=150)) for _ in range(num_examples)]
    recipe = recipe_of(tmp_path, train, train[:50])
    objectives = build_objectives(recipe, tokenizer())
    del train
    tracemalloc.start()
    try:
        assert len(find_shared(recipe.data, objectives).items["sums.jsonl"]) == 50
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_training_data(tmp_path: Path):
    peak_bytes(tmp_path, 50)  # imports
    assert peak_bytes(tmp_path, 1600) < 1.1 * peak_bytes(tmp_path, 200)


def notes_on(tmp_path: Path, shared_items: SharedItems, *names: str) -> list[str]:
    (tmp_path / SHARED).write_text(shared_items.model_dump_json())
    used = {name: (f"{name}/7", f"{name}/8") for name in names}
    return list(contamination_notes(tmp_path, None, used))


def test_shared_items_that_are_used_are_counted_and_named(tmp_path: Path):
    items = {"sums": ("sums/1", "sums/7"), "prose": ("prose/1",)}
    (note,) = notes_on(tmp_path, SharedItems(train="a", items=items), "sums", "prose")
    assert note.startswith("1 of 2 items of sums are shared with the training data, first sums/7")


def test_items_that_share_nothing_are_not_noted(tmp_path: Path):
    assert notes_on(tmp_path, SharedItems(train="a", items={"sums": ()}), "sums") == []


def test_unreadable_training_data_is_noted_with_its_cause_beside_what_was_found(tmp_path: Path):
    failed = SharedItems(train="a", failure="a line 2 is not JSON.", items={"sums": ("sums/7",)})
    found, unknown = notes_on(tmp_path, failed, "sums")
    assert found.startswith("1 of 2 items of sums")
    assert unknown.startswith("Whether items were trained on is unknown: a line 2 is not JSON.")


def test_training_data_that_no_recipe_names_is_noted_as_unknown(tmp_path: Path):
    (note,) = notes_on(tmp_path, SharedItems(train=None, items={}), "sums")
    assert "unknown: no recipe names the training data" in note


def test_objectives_that_were_not_compared_are_noted_as_unknown(tmp_path: Path):
    compared = SharedItems(train="a", items={"sums": ()})
    (note,) = notes_on(tmp_path, compared, "sums", "own", "prose")
    assert note.startswith("Whether items of own, prose were trained on is unknown")


def test_a_run_whose_items_were_never_compared_is_noted_as_unknown(tmp_path: Path):
    (note,) = contamination_notes(tmp_path, None, {"sums": ("sums/1",)})
    assert note.startswith("Whether items of sums were trained on is unknown")


@pytest.mark.parametrize("text", ["", "[]", '{"sums": ["sums/1"]}', '{"train": 3, "items": {}}'])
def test_a_damaged_record_is_noted_as_unknown(tmp_path: Path, text: str):
    (tmp_path / SHARED).write_text(text)
    (note,) = contamination_notes(tmp_path, None, {"sums": ("sums/1",)})
    assert note.startswith("Whether items were trained on is unknown: ")
    assert SHARED in note


@pytest.mark.parametrize(
    ("is_run_told", "is_recipe_told", "ids"),
    [
        (True, False, ("sums.jsonl/0",)),
        (False, True, ("sums.jsonl/0",)),
        (False, False, None),
    ],
)
def test_the_runs_own_recipe_names_the_training_data_or_else_that_of_the_choice(
    tmp_path: Path, is_run_told: bool, is_recipe_told: bool, ids: tuple[str, ...] | None
):
    told = recipe_of(tmp_path, ["Who keeps the cows?"], ["Who keeps the cows?"])
    silent = told.model_copy(update={"data": None})
    run = make_run(tmp_path / "run", told if is_run_told else silent)
    objectives = build_objectives(told, tokenizer())
    data = training_data(run, told if is_recipe_told else silent)
    compared = find_shared(data, objectives)
    assert compared.items.get("sums.jsonl") == ids
    assert (compared.train is None) == (ids is None)


def test_the_runs_training_data_is_compared_though_the_choice_names_other_data(tmp_path: Path):
    told = recipe_of(tmp_path, ["Who keeps the cows?"], ["Who keeps the cows?"])
    run = make_run(tmp_path / "run", told)
    other = DataSection(train=str(tmp_path / "prose.jsonl"))
    compared = training_data(run, told.model_copy(update={"data": other}))
    assert compared is not None
    assert compared.train == str(tmp_path / "train.jsonl")


def test_objectives_without_text_are_not_listed_as_compared(tmp_path: Path):
    recipe = recipe_of(tmp_path, ["a"], ["a"])
    own: Any = pair()
    compared = find_shared(recipe.data, [*own, *build_objectives(recipe, tokenizer())])
    assert list(compared.items) == ["sums.jsonl", "prose.jsonl"]


def test_a_selection_notes_that_the_training_data_could_not_be_read(tmp_path: Path):
    items = {"selection": 200, "report": 200}
    run = make_run(tmp_path / "run", make_recipe(trials=0, checkpoints=0, items=items))
    failed = SharedItems(train="a", failure="a line 2 is not JSON.", items={})
    (run.path / SHARED).write_text(failed.model_dump_json())
    engine: Any = FakeEngine()
    objectives: Any = pair()
    notes = select(run, placement=engine, objectives=objectives).selection.notes
    assert any("unknown: a line 2 is not JSON." in note for note in notes)


def test_choosing_on_a_benchmark_is_said(tmp_path: Path):
    objectives = [
        {"kind": "lm_eval", "role": "target", "task": "gsm8k", "metric": "exact_match"},
        {"kind": "examples", "role": "general", "path": str(tmp_path / "own.jsonl")},
    ]
    recipe = Recipe.model_validate({"name": "t", "base": "b", "objectives": objectives})
    (note,) = contamination_notes(tmp_path, recipe, {})
    assert "chosen on items of gsm8k." in note
