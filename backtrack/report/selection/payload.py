"""What the page's script reads: the records it draws and chooses from, once, as plain values.

Candidates are columns; a candidate is named by its index in the selection. Numbers that are not
finite are null. The rule of choosing is not here: its answers are, see `records.sweep`.
"""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Any

from backtrack.records import ROLES
from backtrack.report.selection import charts, mark_kinds
from backtrack.report.selection.drawing import REPORT_ITEMS, band, smoothed
from backtrack.report.selection.labels import CHOICE

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
    """All values of the page's script.

    Args:
        drawing: The selection as the charts need it.
        sweep: The rule's answers at other weights and bounds, if there are any.
        run_path: How commands on the page name the run.
        geometry: Specifications of a diagnosis's charts, which hold their own data.
    """
    selection = drawing.selection
    return {
        "run": shlex.quote(str(run_path)),
        "level": f"{selection.level:.0%}",
        "weight": selection.weight,
        "is_cautious": selection.is_cautious,
        "constraints": selection.constraints.model_dump(exclude_none=True),
        "axes": {role: axis.model_dump() for role, axis in selection.axes.items()},
        "objectives": [
            o.model_dump(include={"name", "role", "unit", "direction"})
            for o in selection.objectives
        ],
        "candidates": _candidates(selection),
        "indices": {"chosen": drawing.chosen, "base": drawing.base, "final": drawing.final},
        "reported": _reported(drawing),
        "differences": {d.to: _numbers(d.utility) for d in selection.differences},
        "drawing": _drawing(drawing),
        "charts": _charts(drawing, is_live=sweep is not None)
        | {f"geometry-{name}": [spec] for name, spec in geometry.items()},
        "sweep": sweep.model_dump(mode="json") if sweep is not None else None,
    }


def _candidates(selection: Selection) -> Values:
    candidates = selection.candidates
    names = [objective.name for objective in selection.objectives]
    return {
        "name": [str(c.point) for c in candidates],
        "step": [c.point.step for c in candidates],
        "alpha": [c.point.alpha for c in candidates],
        "profile": [c.point.profile for c in candidates],
        "origin": [c.origin for c in candidates],
        "target": [_finite(c.target) for c in candidates],
        "general": [_finite(c.general) for c in candidates],
        "lines": {r: [_finite(smoothed(c)[r]) for c in candidates] for r in ROLES},
        "utility": [_finite(c.utility) for c in candidates],
        "is_feasible": [c.is_feasible for c in candidates],
        "is_whole": [c.share == 1 for c in candidates],
        "is_tied": [c.is_tied for c in candidates],
        "is_on_front": [c.is_on_front for c in candidates],
        "scores": [[_finite(c.scores.get(n, math.nan)) for c in candidates] for n in names],
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
    indices = ((drawing.index(point), row) for point, row in measured.items())
    return {
        str(index): {role: _numbers(getattr(row, role)) for role in ROLES}
        for index, row in indices
        if index is not None
    }


def _numbers(interval: Interval) -> list[float | None]:
    return [_finite(value) for value in (interval.estimate, interval.low, interval.high)]


def _drawing(drawing: Drawing) -> Values:
    """The kind of each candidate's mark, and the paths through candidates, in drawing order."""
    return {
        "marks": _by_kind(drawing.marks()),
        "curve_marks": _by_kind(drawing.curve_marks()),
        "front": [[mark_kinds.FRONT, drawing.front]],
        "paths": [[path.kind, path.ids] for path in charts.plane_paths(drawing)],
        "curves": [[path.kind, path.ids] for path in drawing.curves],
        "bands": {
            i: [round(end, 4) for end in ends.values()]
            for ids in (drawing.front, *(curve.ids for curve in drawing.curves))
            for i in ids
            if (ends := band(drawing.candidate(i)))
        },
        "alpha_ids": drawing.alpha_ids(),
        "apart_from_role": drawing.selection.apart_from_role,
        "kinds": {
            "tied": mark_kinds.TIED,
            "chosen": mark_kinds.CHOSEN,
            "choice": CHOICE,
            "report": REPORT_ITEMS,
            "interval": mark_kinds.INTERVAL,
        },
        "target_ends": drawing.axis_ends("target"),
    }


def _by_kind(marks: Sequence[Row]) -> list[tuple[str, list[int]]]:
    ids: dict[str, list[int]] = {}
    for row in marks:
        ids.setdefault(row["kind"], []).append(row["id"])
    return list(ids.items())


def _charts(drawing: Drawing, *, is_live: bool) -> Values:
    """Specifications by chart, the wide layout first; of their data only the labels stay."""
    layouts = charts.LAYOUTS
    specs = {
        "plane": [charts.plane_spec(drawing, layout, is_live=is_live) for layout in layouts],
        "alpha": [charts.alpha_spec(drawing, layout, is_live=is_live) for layout in layouts],
    }
    for i in drawing.selection.apart_from_role:
        specs[f"score_{i}"] = [charts.objective_spec(drawing, i, is_live=is_live)]
    for spec in (spec for by_layout in specs.values() for spec in by_layout):
        datasets = spec["datasets"]
        spec["datasets"] = {n: datasets[n] for n in datasets if n.startswith(charts.LABELS)}
    return specs


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
