"""Packaged arenas: each loads, names its own command, and covers the paper's methods."""

from __future__ import annotations

from pathlib import Path

import pytest

from backtrack.arena.entrants import paradigm_of
from backtrack.recipe import find_recipe, packaged_arenas
from backtrack.recipe.arena import is_arena, load_arena
from backtrack.train.trainers.check import library_faults

ARENAS = packaged_arenas()
PAPER = {
    "full", "lora-r4", "lora-r8", "lora-r16", "lora-r32", "dora-r8", "pissa-r8", "milora-r8",
    "adalora-r8", "vera-r256", "miss-r8", "miss-r64", "oft-b16", "oft-b32", "oft-b64", "oft-b128",
    "ia3",
}  # fmt: skip
BY_REWARDS = {"full", "lora-r8", "oft-b32"}
SMALL = {
    "full", "lora-r8", "lora-r32", "dora-r8", "pissa-r8", "adalora-r8", "vera-r256", "miss-r8",
    "oft-b16", "oft-b32", "ia3",
}  # fmt: skip


@pytest.mark.parametrize("name", ARENAS)
@pytest.mark.filterwarnings("ignore")
def test_every_arena_loads_and_has_its_methods(name: str) -> None:
    path = ARENAS[name]
    assert is_arena(path)
    arena = load_arena(path, checks=[library_faults])
    assert arena.name == name
    assert f"backtrack arena {name}" in path.read_text(encoding="utf-8")
    small = BY_REWARDS if name.endswith("-grpo") else SMALL
    assert {e.name for e in arena.entrants} >= (small if name.startswith("demo") else PAPER)
    assert {paradigm_of(e) for e in arena.entrants} == {"grpo" if "-grpo" in name else "sft"}
    assert {o.role for o in arena.entrants[0].recipe.objectives} == {"target", "general"}
    by_name = {entrant.name: entrant for entrant in arena.entrants}
    if "oft-b32-dense" in by_name:
        assert by_name["oft-b32-dense"].like == by_name["oft-b32"].label


def test_an_arena_is_found_by_its_name() -> None:
    assert find_recipe(Path("demo-arena")) == ARENAS["demo-arena"]
