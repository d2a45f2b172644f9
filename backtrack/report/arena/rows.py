"""An arena as plain rows: PEFT-Arena's table with the chosen points beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backtrack.formatting import NO_NUMBER
from backtrack.records import ROLES
from backtrack.report import wording

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.records import Interval
    from backtrack.records.arena import Arena, ArenaPoint, Entrant, RankingRow

TRAINING = "checkpoints in training"
ALPHA = "alpha path to the final checkpoint"
Row = dict[str, Any]
Table = tuple[list[str], list[list[str]]]


def ranking(arena: Arena) -> Table:
    """Trainable parameters, target/general of final checkpoint and choice, gain, hypervolume."""
    units = [arena.axes[role].unit for role in ROLES] if arena.axes else ["", ""]
    heads = ["entrant", "trained", "final", "chosen", "gain", "hypervolume"]
    pair = f"target / general ({' / '.join(dict.fromkeys(units))})"
    heads[2:4] = [f"final: {pair}", f"chosen: {pair}"]
    rows = [_base_row(arena, units)] if arena.base_report else []
    for row in arena.ranking:
        seeds = f" ({len(row.seeds)} seeds)" if len(row.seeds) > 1 else ""
        rows.append(
            [
                row.name + seeds,
                _parameters(row.num_trainable),
                _pair(row.final_target, row.final_general, units),
                _pair(row.chosen_target, row.chosen_general, units),
                _signed(row.gain),
                _share(row),
            ]
        )
    return heads, rows


def _base_row(arena: Arena, units: Sequence[str]) -> list[str]:
    assert arena.base_report is not None
    report = arena.base_report
    return ["base", "", _pair(report.target, report.general, units), "", "", ""]


def _pair(target: Interval | None, general: Interval | None, units: Sequence[str]) -> str:
    if target is None or general is None:
        return "failed"
    return f"{wording.interval(target, units[0])} / {wording.interval(general, units[1])}"


def _signed(value: Interval | None) -> str:
    if value is None:
        return NO_NUMBER
    return wording.interval(value, "points", is_signed=True)


def _share(row: RankingRow) -> str:
    found = row.hypervolume
    if found is None:
        return NO_NUMBER
    return wording.interval(found, "%", factor=100)


def _parameters(count: int | None) -> str:
    """A number of parameters in three digits: `1.2M`."""
    if count is None:
        return NO_NUMBER
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def path_rows(arena: Arena) -> list[Row]:
    """Points of each measured entrant's two paths from the base: by training, and by alpha."""
    measured = [entrant for entrant in arena.entrants if entrant.state == "measured"]
    first = {e.name: e.label for e in reversed(measured)}
    return [
        {
            "entrant": entrant.name,
            "run": entrant.label,
            "is_first": entrant.label == first[entrant.name],
            "path": path,
            "order": order,
            "point": str(point.point),
            "target": point.target,
            "general": point.general,
            "is_chosen": point.point == entrant.chosen,
            "is_final": point.point == entrant.final,
        }
        for entrant in measured
        for path, points in ((TRAINING, trained(entrant)), (ALPHA, on_path(entrant)))
        for order, point in enumerate(points)
    ]


def trained(entrant: Entrant) -> list[ArenaPoint]:
    """The base and the checkpoints at full strength, in the order of training."""
    found = [p for p in entrant.points if p.point.is_base or p.is_checkpoint]
    return sorted(found, key=lambda p: p.point.step)


def on_path(entrant: Entrant) -> list[ArenaPoint]:
    """Points on the path to the final checkpoint, the base first, in the order of alpha."""
    final = entrant.final
    found = [
        p
        for p in entrant.points
        if p.point.is_base
        or (final and p.point.step == final.step and p.point.profile == "uniform")
    ]
    return sorted(found, key=lambda p: 0.0 if p.point.is_base else p.point.alpha)
