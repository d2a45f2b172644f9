"""The reference of a recipe's keys, which a guide holds as it is printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backtrack.recipe import packaged_recipes
from backtrack.recipe.yaml_loader import parse_yaml

ROOT = Path(__file__).resolve().parents[2]


def printed(*options: str) -> str:
    """What the command prints in a process that knows no kinds of other tests."""
    command = [sys.executable, "-m", "backtrack", "recipes", "reference", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout


def test_the_guide_is_what_the_command_prints_and_every_key_has_a_meaning() -> None:
    guide = (ROOT / "examples/guides/recipe_reference.md").read_text(encoding="utf-8")
    assert printed() == guide
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*(?:\\\|[^|]*)*) \|$", guide, re.MULTILINE)
    assert len(rows) > 100
    assert [key for key, meaning in rows if not meaning.strip()] == []


@pytest.fixture(scope="module")
def keys() -> set[str]:
    return set(json.loads(printed("--json"))["properties"])


@pytest.mark.parametrize("path", packaged_recipes(), ids=lambda path: path.stem)
def test_the_schema_knows_the_keys_of_the_packages_recipes(path: Path, keys: set[str]) -> None:
    assert set(parse_yaml(path.read_text(encoding="utf-8"))) <= keys
