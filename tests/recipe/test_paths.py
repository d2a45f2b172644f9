"""Files named in a recipe lie beside the recipe, wherever the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from backtrack.recipe.arena import load_arena
from backtrack.recipe.loading import load_recipe

FILES = ("train.jsonl", "eval.jsonl", "chat.jinja", "zero3.json", "fsdp.json", "accelerator.json")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder, while the command runs in another one."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text("{}")
    return folder


def write(folder: Path, **keys: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "r", "base": "some/base", **keys}))
    return path


def test_data_for_training_and_evaluation_lie_beside_the_recipe(folder: Path) -> None:
    recipe = load_recipe(write(folder, data={"train": "train.jsonl", "eval": "eval.jsonl"}))
    assert recipe.data is not None
    assert recipe.data.train == str(folder / "train.jsonl")
    assert recipe.data.eval == str(folder / "eval.jsonl")


@pytest.mark.parametrize("trainer", ["sft", "grpo"])
def test_files_of_the_trainers_settings_lie_beside_the_recipe(folder: Path, trainer: str) -> None:
    settings = {
        "chat_template_path": "chat.jinja", "deepspeed": "zero3.json",
        "fsdp_config": "fsdp.json", "accelerator_config": "accelerator.json",
    }  # fmt: skip
    rewards = [{"kind": "numeric"}] if trainer == "grpo" else []
    recipe = load_recipe(write(folder, rewards=rewards, **{trainer: settings}))
    assert getattr(recipe, trainer) == {k: str(folder / v) for k, v in settings.items()}


def test_names_without_a_file_beside_the_recipe_are_left_alone(folder: Path) -> None:
    data = {"train": "some/data", "eval": "other/data"}
    sft = {"chat_template_path": "some/model", "deepspeed": {"stage": 3}, "run_name": "eval.jsonl"}
    recipe = load_recipe(write(folder, data=data, sft=sft))
    assert recipe.data is not None
    assert (recipe.data.train, recipe.data.eval) == ("some/data", "other/data")
    assert recipe.sft == sft


def test_an_arenas_entrants_name_files_beside_the_arena(folder: Path) -> None:
    entrant = {
        "name": "one", "method": {"kind": "full"}, "data": {"eval": "eval.jsonl"},
        "sft": {"deepspeed": "zero3.json"},
    }  # fmt: skip
    path = write(folder, data={"train": "train.jsonl"}, entrants=[entrant])
    [spec] = load_arena(path).entrants
    assert spec.recipe is not None
    assert spec.recipe.data is not None
    assert spec.recipe.data.eval == str(folder / "eval.jsonl")
    assert spec.recipe.sft == {"deepspeed": str(folder / "zero3.json")}
