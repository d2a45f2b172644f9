"""CONTRIBUTING: its examples run as written, and what it names exists."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from peft import PeftType, VeraConfig
from transformers import AutoModelForCausalLM

import backtrack
from backtrack.path.adapters.tuners import TUNERS
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.recipe import Recipe
from backtrack.selection.choice.select import select
from tests.models import make_base, make_full_run, make_peft_run

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COUNTRIES = {
    f"{letter}land": f"{letter}ton" for letter in "ABCDEFGHIJKLMNOP"
}  # as many as a search and a report need


def example(name: str) -> str:
    """The code of a worked example."""
    found = re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None, name
    return found.group(1)


@pytest.fixture
def defined(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module with the example kinds, as a user's script would define them."""
    module = ModuleType("example_kinds")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("objective", "engine"):
        exec(compile(example(name), f"CONTRIBUTING.md#{name}", "exec"), vars(module))
    yield module
    # A subclass counts as a kind for as long as it exists; later tests list all kinds.
    for section in ("CapitalsSection", "PreciseSection"):
        vars(module)[section].model_fields.pop("kind")


def test_an_objective_kind_and_an_engine_are_added_without_touching_the_package(
    defined: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_full_run(tmp_path / "run", make_base(tmp_path / "base"))
    pairs = {"kind": "capitals", "pairs": COUNTRIES}
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "base": str(tmp_path / "base"),
            "objectives": [
                {**pairs, "role": "target", "name": "capitals"},
                {**pairs, "role": "general", "name": "towns"},
            ],
            "search": {"trials": 0, "alphas": [0.5], "items": {"selection": 8, "report": 8}},
            "engine": "precise",
        }
    )
    asked: list[Any] = []
    model = vars(defined)["PreciseModel"]
    score = model._score

    def counted(self: Any, sequences: Any) -> Any:
        asked.extend(sequences)
        return score(self, sequences)

    monkeypatch.setattr(model, "_score", counted)
    choice = select(run, recipe=recipe)
    measured = run.measurements()
    assert {m.objective.kind for m in measured} == {"capitals"}
    assert {m.point.alpha for m in measured} >= {0.0, 0.5, 1.0}
    assert set(measured[0].scores) <= {0.0, 1.0}
    assert choice.selection is not None
    assert asked


def test_a_peft_method_is_one_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = TUNERS[PeftType.VERA]
    monkeypatch.delitem(TUNERS, PeftType.VERA)
    exec(compile(example("tuner"), "CONTRIBUTING.md", "exec"), {})
    assert TUNERS[PeftType.VERA] == row
    base = make_base(tmp_path / "base")
    run = make_peft_run(tmp_path / "run", base, VeraConfig(r=2, target_modules=["q_proj"]))
    placed = Placement(run)
    ids = torch.arange(3, 20)[None]
    placed.place(Point(step=20, alpha=0.5))
    moved = placed.model(input_ids=ids).logits
    placed.place(Point.base())
    expected = AutoModelForCausalLM.from_pretrained(base)(input_ids=ids).logits
    assert torch.equal(placed.model(input_ids=ids).logits, expected)
    assert not torch.equal(moved, expected)


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the three diffs applied."""
    folder = tmp_path_factory.mktemp("patched")
    shutil.copytree(
        Path(backtrack.__file__).parent,
        folder / "backtrack",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("sampler", "command", "format"):
        subprocess.run(
            ["git", "apply", "-"], cwd=folder, input=example(name), text=True, check=True
        )
    return folder


def run_patched(folder: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sampler_and_a_command_are_added_by_two_files_each(
    patched: Path, tmp_path: Path
) -> None:
    made = run_patched(
        patched,
        "from backtrack.recipe import SearchSection\n"
        "from backtrack.selection.search.sampler import make_sampler\n"
        "print(type(make_sampler(SearchSection(sampler='brute_force'), 0)).__name__)",
    )
    assert made.strip() == "BruteForceSampler"
    run = make_full_run(tmp_path / "run", make_base(tmp_path / "base"), steps=(10, 20))
    printed = run_patched(
        patched, f"from backtrack.cli import main; main(['steps', {str(run.path)!r}])"
    )
    assert printed.split() == ["10", "20"]


def test_a_checkpoint_format_is_added_by_two_files(patched: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=False)
    state = AutoModelForCausalLM.from_pretrained(base).state_dict()
    folder = tmp_path / "out" / "checkpoint-5"
    folder.mkdir(parents=True)
    np.savez(folder / "weights.npz", **{n: (t + 1).numpy() for n, t in state.items()})
    printed = run_patched(
        patched,
        "from backtrack import adopt\n"
        "from backtrack.run.checkpoint_reader import read_checkpoint\n"
        f"run = adopt({str(folder.parent)!r}, base={str(base)!r})\n"
        "t = read_checkpoint(run, 5)['model.norm.weight']\n"
        "print(run.entry(5).storage, t.float().mean().item())",
    )
    assert printed.split() == ["npz", "2.0"]


def test_every_module_and_name_that_is_named_exists() -> None:
    ways = TEXT.partition("## Three ways")[2].partition("\n## ")[0]
    named = re.findall(r"`(backtrack\.[\w.]+):(\w+)`", ways)
    assert len(named) >= 25
    for module, name in named:
        assert hasattr(importlib.import_module(module), name), (module, name)


def test_every_path_that_is_named_exists() -> None:
    package = ROOT / "backtrack"
    paths: set[Any] = set(re.findall(r"`((?:tests/)?[a-z_]+/[\w/]+\.py|tests/\w+/)`", TEXT))
    assert len(paths) >= 10
    for path in paths:
        assert (ROOT / path).exists() or (package / path).exists(), path


def test_each_way_has_about_ten_steps() -> None:
    ways = TEXT.partition("## Three ways")[2].partition("\n## ")[0]
    for way in ways.split("\n\n**")[1:]:
        assert 5 <= len(re.findall(r"^\d+\. ", way, re.MULTILINE)) <= 11
