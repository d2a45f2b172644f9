"""Compare two methods: which forgets less, and is that still so after backtracking?

Trains LoRA and OFT on the model and data embedded in the package, measures both on the same items
and writes the arena's page. Needs no network and takes a few minutes on a CPU:

    python examples/compare_methods.py runs
"""

from __future__ import annotations

import sys
from pathlib import Path

import backtrack
from backtrack.arena.driver import run_arena
from backtrack.recipe.arena import load_arena
from backtrack.report.arena.page import write_arena_page

RECIPE = Path(backtrack.__file__).parent / "assets" / "demo" / "arena.yaml"
ENTRANTS = (
    "[{name: lora, method: {kind: lora, r: 8, lora_alpha: 16}}, "
    "{name: oft, method: {kind: oft, oft_block_size: 16}}]"
)


def main(folder: Path, max_steps: int = 120, *overrides: str) -> None:
    settings = ["name=two-methods", f"output={folder}", f"entrants={ENTRANTS}", "seeds=[0]"]
    steps = [f"sft.max_steps={max_steps}", f"trajectory.every_steps={max(1, max_steps // 4)}"]
    arena = run_arena(load_arena(RECIPE, [*settings, *steps, "diagnose=null", *overrides]))
    for row in arena.ranking:
        if row.chosen_target and row.chosen_general and row.gain:
            print(
                f"{row.name}: chosen {row.chosen_target.estimate:.1f} / "
                f"{row.chosen_general.estimate:.1f}, {row.gain.estimate:+.1f} points "
                "of utility over the final checkpoint"
            )
    print(write_arena_page(folder / "two-methods", arena))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int((sys.argv[2:] or ["120"])[0]), *sys.argv[3:])
