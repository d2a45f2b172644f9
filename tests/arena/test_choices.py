"""Choices in the recipe of an arena: which option is taken, and how its keys are added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from backtrack.errors import RecipeError
from backtrack.recipe.arena import load_arena
from backtrack.recipe.choices import read_with_options

RECIPE = """\
name: it-{base}-{domain}
base: hub/Some-Instruct
domain: math
kind: {"*INSTRUCT*": chat, "*": plain}
data: {train: a, chat: true}
items: [1]
choices:
  domain:
    math: {items: [2], data: {train: b}, rewards: [x]}
    medicine: {items: [3]}
  kind:
    chat: {rewards: null, items: [4], base: {dtype: bfloat16}}
    plain: {data: {chat: null}}
"""


def read(tmp_path: Path, *overrides: str) -> tuple[dict[str, Any], list[str]]:
    path = tmp_path / "it.yaml"
    path.write_text(RECIPE)
    return read_with_options(path, overrides)


def test_an_option_is_merged_joined_and_removed(tmp_path: Path) -> None:
    raw, faults = read(tmp_path)
    assert not faults
    assert raw == {
        "name": "it-Some-Instruct-math",
        "base": {"model": "hub/Some-Instruct", "dtype": "bfloat16"},
        "data": {"train": "b", "chat": True},
        "items": [1, 2, 4],
    }


def test_overrides_of_choices_come_before_the_options_and_others_after(tmp_path: Path) -> None:
    raw, faults = read(tmp_path, "base=hub/Other", "domain=medicine", "data.train=c", "items.1=9")
    assert not faults
    assert raw["name"] == "it-Other-medicine"
    assert raw["data"] == {"train": "c"}, "no instruct in the base's name: `chat` is removed"
    assert raw["items"] == [1, 9]
    assert read(tmp_path, "kind=chat", "base=hub/Other")[0]["items"] == [1, 2, 4]


def test_an_unknown_option_is_named_with_the_known(tmp_path: Path) -> None:
    _, faults = read(tmp_path, "domain=medicin")
    assert faults == [
        "domain: there is no 'medicin'. Did you mean 'medicine'? There are math, medicine."
    ]
    path = tmp_path / "it.yaml"
    path.write_text(yaml.safe_dump({"name": "it", "choices": {"domain": ["math"]}}))
    with pytest.raises(RecipeError, match="write option by name"):
        load_arena(path)
