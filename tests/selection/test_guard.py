from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer

from backtrack.demo import ASSETS
from backtrack.evaluate.build import build_objectives
from backtrack.recipe import Recipe
from backtrack.selection.measure.contamination import find_shared, guard_notes, write_shared

LONG = (
    "A farmer has twelve cows and sells three of them to a neighbour who already owns seven cows "
    "and two horses"
)


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


def found_in(recipe: Recipe) -> dict[str, list[str]]:
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "model")
    return find_shared(recipe.data, build_objectives(recipe, tokenizer))


def shared(tmp_path: Path, train: list[str], asked: list[str]) -> list[str]:
    return found_in(recipe_of(tmp_path, train, asked)).get("sums.jsonl", [])


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


def test_data_that_cannot_be_read_finds_nothing(tmp_path: Path):
    recipe = recipe_of(tmp_path, ["a"], ["a"])
    (tmp_path / "train.jsonl").unlink()
    assert found_in(recipe) == {}


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


def test_shared_items_that_are_used_are_counted_and_named(tmp_path: Path):
    write_shared(tmp_path, {"sums": ["sums/1", "sums/7"]})
    (note,) = guard_notes(tmp_path, None, {"sums": ("sums/7", "sums/8")})
    assert note.startswith("1 of 2 items of sums are in the training data too, first sums/7")


def test_choosing_on_a_benchmark_is_said(tmp_path: Path):
    objectives = [
        {"kind": "lm_eval", "role": "target", "task": "gsm8k", "metric": "exact_match"},
        {"kind": "examples", "role": "general", "path": str(tmp_path / "own.jsonl")},
    ]
    recipe = Recipe.model_validate({"name": "t", "base": "b", "objectives": objectives})
    (note,) = guard_notes(tmp_path, recipe, {})
    assert "chosen on items of gsm8k." in note
