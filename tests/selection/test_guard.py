from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backtrack.recipe import Recipe
from backtrack.selection.guard import find_shared, guard_notes, write_shared

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


def shared(tmp_path: Path, train: list[str], asked: list[str]) -> list[str]:
    recipe = recipe_of(tmp_path, train, asked)
    ids = {name: [f"{name}/{i}" for i in range(len(asked))] for name in ("sums.jsonl",)}
    return find_shared(recipe, ids).get("sums.jsonl", [])


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
    assert find_shared(recipe, {"sums.jsonl": ["sums.jsonl/0"]}) == {}


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
