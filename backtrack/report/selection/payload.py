"""What the page's script reads: the records it draws and chooses from, once, as plain values.

Candidates stand in columns and are told by their place in the selection. Numbers that are not
finite are null. The rule of choosing is not here: its answers are, see `records.Sweep`.
"""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Any

from backtrack.records import ROLES
from backtrack.report.selection import charts, mark_kinds
from backtrack.report.selection.drawing import band

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from backtrack.point import Point
    from backtrack.records import Interval
    from backtrack.records.selection import BaselineRow, ReportRow, Selection
    from backtrack.records.sweep import Sweep
    from backtrack.report.selection.drawing import Drawing, Row

Values = dict[str, Any]


def payload(
    drawing: Drawing, sweep: Sweep | None, run_path: Path, geometry: Mapping[str, Values]
) -> Values:
    """All of it.

    Args:
        drawing: Of the selection.
        sweep: The answers at other weights and bounds, if there are any.
        run_path: What a command calls the run.
        geometry: Drawings of a diagnosis, which hold their own data.
    """
    selection = drawing.selection
    return {
        "run": shlex.quote(str(run_path)),
        "level": f"{selection.level:.0%}",
        "weight": selection.weight,
        "constraints": selection.constraints.model_dump(exclude_none=True),
        "axes": {role: axis.model_dump() for role, axis in selection.axes.items()},
        "objectives": [
            o.model_dump(include={"name", "role", "unit", "direction"})
            for o in selection.objectives
        ],
        "candidates": _candidates(selection),
        "places": {"chosen": drawing.chosen, "base": drawing.base, "final": drawing.final},
        "reported": _reported(drawing),
        "differences": {d.to: _ends(d.utility) for d in selection.differences},
        "drawn": _drawn(drawing),
        "charts": _charts(drawing, is_live=sweep is not None)
        | {f"geometry-{name}": [spec] for name, spec in geometry.items()},
        "sweep": sweep.model_dump(mode="json") if sweep is not None else None,
    }


def _candidates(selection: Selection) -> Values:
    found = selection.candidates
    names = [objective.name for objective in selection.objectives]
    return {
        "name": [str(c.point) for c in found],
        "step": [c.point.step for c in found],
        "alpha": [c.point.alpha for c in found],
        "profile": [c.point.profile for c in found],
        "origin": [c.origin for c in found],
        "share": [c.share for c in found],
        "target": [_finite(c.target) for c in found],
        "general": [_finite(c.general) for c in found],
        "utility": [_finite(c.utility) for c in found],
        "is_feasible": [c.is_feasible for c in found],
        "is_tied": [c.is_tied for c in found],
        "is_on_front": [c.is_on_front for c in found],
        "scores": [[_finite(c.scores.get(name, math.nan)) for c in found] for name in names],
    }


def _reported(drawing: Drawing) -> Values:
    """Role scores on the report items, of the candidates that were measured on them."""
    selection = drawing.selection
    measured: dict[Point, ReportRow | BaselineRow] = {
        row.point.canonical: row for row in selection.report.values()
    }
    for baseline in selection.baselines:
        if baseline.baseline.point is not None:
            measured[baseline.baseline.point.canonical] = baseline
    places = ((drawing.place(point), row) for point, row in measured.items())
    return {
        str(place): {role: _ends(getattr(row, role)) for role in ROLES}
        for place, row in places
        if place is not None
    }


def _ends(interval: Interval) -> list[float | None]:
    return [_finite(value) for value in (interval.estimate, interval.low, interval.high)]


def _drawn(drawing: Drawing) -> Values:
    """Which candidate is drawn as what, in the order of drawing."""
    return {
        "marks": _by_kind(drawing.marks()),
        "curve_marks": _by_kind(drawing.curve_marks()),
        "front": [[mark_kinds.FRONT, drawing.front]],
        "paths": [[path.kind, path.ids] for path in charts.plane_paths(drawing)],
        "curves": [[path.kind, path.ids] for path in drawing.curves],
        "bands": {
            i: [round(end, 4) for end in ends.values()]
            for curve in drawing.curves
            for i in curve.ids
            if (ends := band(drawing.candidate(i)))
        },
        "along_alpha": drawing.along_alpha(),
        "several": drawing.several,
        "kinds": {
            "tied": mark_kinds.TIED,
            "chosen": mark_kinds.CHOSEN,
            "base": mark_kinds.BASE,
            "final": mark_kinds.FINAL,
            "reading": drawing.reading_name,
        },
        "ends": {role: drawing.ends(role) for role in ROLES},
    }


def _by_kind(marks: Sequence[Row]) -> list[tuple[str, list[int]]]:
    found: dict[str, list[int]] = {}
    for row in marks:
        found.setdefault(row["kind"], []).append(row["id"])
    return list(found.items())


def _charts(drawing: Drawing, *, is_live: bool) -> Values:
    """Specifications by chart, the wide layout first; names alone stand in them as data."""
    wide, narrow = charts.LAYOUTS
    specs = {
        "plane": [charts.plane_spec(drawing, at, is_live=is_live) for at in (wide, narrow)],
        "alpha": [charts.alpha_spec(drawing, at, is_live=is_live) for at in (wide, narrow)],
    }
    for i in drawing.several:
        specs[f"score_{i}"] = [charts.objective_spec(drawing, i, is_live=is_live)]
    for spec in (spec for found in specs.values() for spec in found):
        named = spec["datasets"]
        spec["datasets"] = {n: named[n] for n in named if n.startswith(("names", "waymarks"))}
    return specs


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
