"""A tiny base, a file of sums and recipes over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from backtrack.recipe import Recipe
from tests.models import make_base

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty sums as JSON lines."""
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    lines = [json.dumps({"sum": f"{i} + {i + 1} =", "answer": 2 * i + 1}) for i in range(40)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def make_recipe(base: Path, sums: Path, tmp_path: Path) -> MakeRecipe:
    """Recipes that train the tiny base on the sums for seven steps; keywords replace sections."""

    def make(**sections: Any) -> Recipe:
        standard: dict[str, Any] = {
            "name": "tiny",
            "base": str(base),
            "output": str(tmp_path / "runs"),
            "method": {"kind": "full"},
            "data": {"train": str(sums), "prompt": "{sum}", "completion": " {answer}"},
            "trajectory": {"every_steps": 3},
        }
        sft = {"max_steps": 7, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
        return Recipe.model_validate(
            {**standard, **sections, "sft": {**sft, **sections.get("sft", {})}}
        )

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums over several threads are not promised to come out bit for bit alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
