"""Hostile recipes: refused at once, with the file, the line and the key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from backtrack import cli
from backtrack.errors import RecipeError
from backtrack.recipe import load_recipe, packaged_arenas, packaged_recipes
from backtrack.recipe.yaml_loader import parse_yaml

HEAD = "name: hostile\nbase: base\n"


def bomb(inner: str, opening: str, closing: str) -> str:
    """Lines that each stand for nine of the line before."""
    lines = (f"a{i}: &a{i} {opening}{','.join([f'*a{i - 1}'] * 9)}{closing}" for i in range(1, 12))
    return "\n".join([f"a0: &a0 {inner}", *lines])


REFUSED = {
    "a key twice": ("seed: 0\nseed: 5", r"line 4: seed: the key is given twice, first in line 3"),
    "a section twice": ("search: {}\nselect: {}\nsearch: {}", r"line 5: search: the key is given"),
    "a nested key twice": (
        "search:\n  trials: 3\n  trials: 4",
        r"line 5: search\.trials: the",
    ),
    "a key of a list twice": (
        "objectives:\n- {kind: text, kind: text}",
        r"line 4: objectives\.0\.kind: ",
    ),
    "an alias bomb": (bomb("[1, 1]", "[", "]"), r"line \d+: a\d: more than 50,000 values"),
    "a bomb of merged keys": (bomb("{k: 1}", "{<<: [", "]}"), r"line \d+: a\d.*50,000 values"),
    "an alias of itself": ("seed: &a [*a]", r"line 3: seed\.0: the alias contains itself"),
    "open brackets": ("seed: " + "[" * 3000, r"line 3: seed\..*: nested more than 50 levels"),
    "brackets": ("seed: " + "[" * 3000 + "]" * 3000, r"line 3: seed\..*: nested more than 50"),
    "braces": ("seed: " + "{a: " * 3000, r"line 3: seed\..*: nested more than 50 levels"),
    "dashes": ("seed:\n  " + "- " * 3000 + "1", r"line 4: seed\..*: nested more than 50 levels"),
    "nan": ("select:\n  weight: .nan", r"line 4: select\.weight: \.nan is not a finite number"),
    "inf in a list": ("search: {alphas: [0.5, .inf]}", r"line 3: search\.alphas\.1: \.inf is not"),
    "inf for a library": ("sft: {learning_rate: -.inf}", r"line 3: sft\.learning_rate: -\.inf is"),
    "a rate too large": ("learning_rates: {a: 1.0e+999}", r"line 3: learning_rates\.a: .* finite"),
    "nan as text": ("learning_rates: {a: nan}", r"learning_rates\.a: .*finite number, got 'nan'"),
    "5,000 digits": ("seed: " + "1" * 5000, r"line 3: seed: a number of more than 300 digits"),
    "a large hex number": ("seed: 0x" + "f" * 5000, r"line 3: seed: a number of more than 300"),
    "no such month": ("seed: 2024-13-45", r"line 3: seed: month must be in 1\.\.12"),
    "a lone surrogate": ('output: "\\ud800"', r"line 3: output: a lone surrogate"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_recipe_is_refused_at_once_with_line_and_key(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = REFUSED[case]
    path = tmp_path / "hostile.yaml"
    path.write_text(HEAD + text + "\n")
    with pytest.raises(RecipeError, match=rf"hostile\.yaml has .*\n  - {message}") as caught:
        load_recipe(path)
    assert all(len(fault) < 250 for fault in caught.value.faults)
    with pytest.raises(SystemExit) as ended:
        cli.main(["recipes", "check", str(path)])
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (".nan", "line 1: .nan is not a finite number"),
        ("[" * 3000, "nested more than 50 levels"),
        ("{a: 1, a: 2}", "line 1: a: the key is given twice"),
        ("1" * 5000, "a number of more than 300 digits"),
    ],
)
def test_a_hostile_override_is_refused(tmp_path: Path, value: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(HEAD)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [f"select.weight={value}"])
    assert message in caught.value.faults[0]
    assert len(caught.value.faults[0]) < 300


@pytest.mark.parametrize("value", ["x" * 5000, "[" + "1, " * 5000 + "]", "{a: " + "y" * 999 + "}"])
def test_a_wrong_value_is_repeated_in_short(tmp_path: Path, value: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{HEAD}seed: {value}\n")
    with pytest.raises(RecipeError, match="got ") as caught:
        load_recipe(path)
    assert len(caught.value.faults[0].partition("got ")[2]) <= 80


@pytest.mark.parametrize("path", [*packaged_recipes(), *packaged_arenas().values()], ids=str)
def test_other_recipes_are_read_as_pyyaml_reads_them(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert parse_yaml(text) == yaml.safe_load(text)


def test_anchors_and_merged_keys_are_allowed() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n"
    assert parse_yaml(text) == yaml.safe_load(text)


def test_a_key_of_a_section_that_is_written_bare_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{HEAD}engine: vllm\n")
    recipe = load_recipe(path, ["base.dtype=bfloat16", "engine.dtype=float32"])
    assert (recipe.base.model, recipe.base.dtype) == ("base", "bfloat16")
    assert recipe.engine.model_dump()["dtype"] == "float32"
    with pytest.raises(RecipeError, match=r"'seed\.inner' is not a key"):
        load_recipe(path, ["seed=mine", "seed.inner=1"])
