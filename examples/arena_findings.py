"""Answer the questions of PEFT-Arena from an arena's record, as tables.

    backtrack arena demo-arena
    python examples/arena_findings.py runs/demo-arena

Reads only `arena.json`: nothing is trained or measured. Answers are means over seeds, on the
selection items if they compare whole paths, on the report items if they compare points.
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
    print("\nShare of the arena's box covered by training and by the path (hypervolume, %):\n")
    heads = ["entrant", "checkpoints of training", "path to the last one", "both"]
    print_table(heads, [covered(arena, name, group) for name, group in by_name(arena)])
    print("\nGeneral score retained at half of the final gain on the target:\n")
    rows = [[name, *halfway(group)] for name, group in by_name(arena)]
    print_table(["entrant", "on the path", "in training"], rows)
    if arena.correlations:
        print("\nGeometry of the final checkpoints and their forgetting:\n")
        print_table(*correlation_table(arena.correlations))


def by_name(arena: Arena) -> list[tuple[str, list[Entrant]]]:
    """Measured entrants by name."""
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
    """Share of the arena's box that points dominate, in percent; roles must be in points."""
    assert arena.corner is not None
    assert arena.reach is not None
    box = (arena.reach[0] - arena.corner[0]) * (arena.reach[1] - arena.corner[1])
    target, general = (np.array([getattr(p, role) for p in points]) for role in ROLES)
    return 100 * hypervolume(target, general, arena.corner) / box


def halfway(group: list[Entrant]) -> list[str]:
    """General score, interpolated, at half of the final gain: on the path and in training."""
    scores: list[list[float]] = [[], []]
    for entrant in group:
        ends = [p for p in on_path(entrant) if p.point.is_base or p.point == entrant.final]
        half = statistics.mean(point.target for point in ends)
        for values, points in zip(scores, (on_path(entrant), trained(entrant)), strict=True):
            crossing = first_crossing(points, half)
            values += [crossing] if crossing is not None else []
    return [f"{statistics.mean(v):.1f}" if v else "not reached" for v in scores]


def first_crossing(points: list[ArenaPoint], level: float) -> float | None:
    """General score where the target score first reaches a level, interpolated."""
    for before, after in itertools.pairwise(points):
        if before.target < level <= after.target:
            part = (level - before.target) / (after.target - before.target)
            return before.general + part * (after.general - before.general)
    return None


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    for cells in (heads, ["---"] * len(heads), *rows):
        escaped = [cell.replace("|", "\\|") for cell in cells]
        print(f"| {' | '.join(escaped)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/demo-arena"))
