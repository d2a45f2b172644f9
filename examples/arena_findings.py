"""Ask an arena's record the questions of PEFT-Arena, and print its answers as tables.

    backtrack arena demo-arena
    python examples/arena_findings.py runs/demo-arena

Reads `arena.json` alone: nothing is trained or measured. Answers are means over seeds, on the
selection items where they compare whole paths, on the report items where they compare points.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backtrack.arena.driver import read_arena
from backtrack.records import ROLES
from backtrack.report.arena.rows import on_path, ranking, trained
from backtrack.report.geometry.rows import correlation_table
from backtrack.selection.stats.front import hypervolume

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backtrack.records.arena import Arena, ArenaPoint, Entrant


def main(folder: Path) -> None:
    arena = read_arena(folder)
    print_table(*ranking(arena))
    print("\nThe path and the training, as shares of the arena's box (hypervolume, %):\n")
    heads = ["entrant", "checkpoints of training", "path to the last one", "both"]
    print_table(heads, [covered(arena, name, group) for name, group in by_name(arena)])
    print(
        "\nGeneral score that is kept where the path has half of the final gain on the target:\n"
    )
    rows = [[name, *halfway(group)] for name, group in by_name(arena)]
    print_table(["entrant", "on the path", "in training"], rows)
    if arena.correlations:
        print("\nGeometry of the final checkpoints and what they forgot:\n")
        print_table(*correlation_table(arena.correlations))


def by_name(arena: Arena) -> list[tuple[str, list[Entrant]]]:
    """Measured entrants, those of one name together."""
    measured = [entrant for entrant in arena.entrants if entrant.state == "measured"]
    names = dict.fromkeys(entrant.name for entrant in measured)
    return [(name, [e for e in measured if e.name == name]) for name in names]


def covered(arena: Arena, name: str, group: list[Entrant]) -> list[str]:
    """Hypervolume of the checkpoints alone, of the path alone, and of all points."""
    training = [share(arena, trained(entrant)) for entrant in group]
    path = [share(arena, on_path(entrant)) for entrant in group]
    both = [share(arena, entrant.points) for entrant in group]
    return [name, *(f"{statistics.mean(values):.1f}" for values in (training, path, both))]


def share(arena: Arena, points: Iterable[ArenaPoint]) -> float:
    """What points dominate of the arena's box, in percent; roles are in points already."""
    assert arena.corner is not None
    assert arena.reach is not None
    box = (arena.reach[0] - arena.corner[0]) * (arena.reach[1] - arena.corner[1])
    target, general = (np.array([getattr(p, role) for p in points]) for role in ROLES)
    return 100 * hypervolume(target, general, arena.corner) / box


def halfway(group: list[Entrant]) -> list[str]:
    """General score, between two points, at half of the final gain: on the path, in training."""
    found: list[list[float]] = [[], []]
    for entrant in group:
        ends = [p for p in on_path(entrant) if p.point.is_base or p.point == entrant.final]
        wanted = statistics.mean(point.target for point in ends)
        for values, points in zip(found, (on_path(entrant), trained(entrant)), strict=True):
            crossing = first_crossing(points, wanted)
            values += [crossing] if crossing is not None else []
    return [f"{statistics.mean(v):.1f}" if v else "never there" for v in found]


def first_crossing(points: list[ArenaPoint], wanted: float) -> float | None:
    """General score where the target score first reaches `wanted`, between two neighbours."""
    for before, after in itertools.pairwise(points):
        if before.target < wanted <= after.target:
            part = (wanted - before.target) / (after.target - before.target)
            return before.general + part * (after.general - before.general)
    return None


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    """In Markdown."""
    for cells in (heads, ["---"] * len(heads), *rows):
        escaped = [cell.replace("|", "\\|") for cell in cells]
        print(f"| {' | '.join(escaped)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/demo-arena"))
