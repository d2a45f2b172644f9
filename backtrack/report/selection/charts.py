"""Charts of a selection: one Vega-Lite specification each, for the page and for the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import altair as alt

from backtrack.records import ROLES
from backtrack.report import vega
from backtrack.report.selection import layers
from backtrack.report.selection.drawing import PathLine
from backtrack.report.selection.labels import panel_labels, plane_labels
from backtrack.report.selection.mark_kinds import CHOSEN, FRONT, INTERVAL, TIED, legend_kinds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.report.selection.drawing import Drawing, Row
    from backtrack.report.selection.mark_kinds import MarkKind
    from backtrack.report.vega import Spec


@dataclass(frozen=True)
class Layout:
    """Sizes of the charts; the page takes the layout that fits and stretches its width.

    Attributes:
        plane: Width and height of the plane in pixels.
        panel: Width and height of a panel along alpha in pixels.
        columns: Of the legend.
        has_path_labels: Whether steps and alphas are written along the paths.
    """

    plane: tuple[float, float]
    panel: tuple[float, float]
    columns: int
    has_path_labels: bool


WIDE = Layout((720.0, 440.0), (720.0, 190.0), columns=4, has_path_labels=True)
NARROW = Layout((270.0, 320.0), (270.0, 160.0), columns=2, has_path_labels=False)
LAYOUTS = (WIDE, NARROW)
SMALL = (200.0, 120.0)
"""Width and height of an objective's panel, in pixels."""
LABELS = ("labels", "path_labels")
"""How names of label datasets begin; positions are computed here, so the page keeps their rows."""
_POINTS = ("marks", "overlay")


def plane_spec(drawing: Drawing, layout: Layout = WIDE, *, is_live: bool = False) -> Spec:
    """Target against general: paths, front, tied points and the choice. Better is right and up.

    Args:
        drawing: What is drawn.
        layout: Sizes.
        is_live: The page moves the choice, so the legend has all its kinds and the page labels it.
    """
    labels = plane_labels(
        drawing,
        layout.plane,
        has_path_labels=layout.has_path_labels,
        has_choice=not is_live,
    )
    datasets = {
        "front": drawing.lines([PathLine(FRONT, drawing.front)]),
        "front_bands": drawing.front_bands(),
        "lines": drawing.lines(plane_paths(drawing)),
        "cross": drawing.cross(),
        "cross_label": drawing.cross_label(),
        "marks": drawing.marks(),
        "overlay": drawing.overlay(),
        **_label_datasets(labels),
    }
    encoding = layers.plane_encoding(drawing)
    kinds = _kinds(drawing, datasets, is_live=is_live)
    drawn = [
        layers.front_band_layer(encoding),
        layers.front_layer(encoding),
        layers.line_layer(kinds, encoding, "catmull-rom"),
        layers.cross_layer(encoding),
        *(layers.mark_layer(name, kinds, encoding) for name in _POINTS),
        layers.cross_label_layer(encoding),
        *layers.label_layers(encoding),
    ]
    chart = _sized(drawn, layout.plane)
    text = "Target score against general score on the selection items: marks and smoothed paths."
    return _spec(chart, text, layout, datasets)


def plane_paths(drawing: Drawing) -> list[PathLine]:
    """The training path, and the paths along alpha that have more than their two ends."""
    return [drawing.training, *(c for c in drawing.curves if _has_strengths(drawing, c))]


def alpha_spec(drawing: Drawing, layout: Layout = WIDE, *, is_live: bool = False) -> Spec:
    """Each role's score along alpha, one panel per role; see `plane_spec`."""
    datasets = _alpha_datasets(drawing)
    kinds = _kinds(drawing, {**datasets, "front": []}, is_live=is_live)
    panels = []
    is_short = not layout.has_path_labels
    for role in ROLES:
        labels = panel_labels(
            drawing, role, layout.panel, is_short=is_short, has_choice=not is_live
        )
        datasets |= {f"{name}_{role}": rows for name, rows in _label_datasets(labels).items()}
        panel = _panel(drawing, role, kinds, is_last=role == ROLES[-1])
        panels.append(_sized(panel, layout.panel))
    chart = {"vconcat": panels, "spacing": 14, "resolve": {"scale": {"x": "shared"}}}
    text = "Target and general score along the strength alpha, on the selection items."
    return _spec(chart, text, layout, datasets)


def objective_spec(drawing: Drawing, objective: int, *, is_live: bool = False) -> Spec:
    """One objective along alpha, in a small panel without a legend.

    Args:
        drawing: What is drawn.
        objective: Index among the selection's objectives.
        is_live: See `plane_spec`.
    """
    datasets = {n: rows for n, rows in _alpha_datasets(drawing).items() if n != "bands"}
    kinds = _kinds(drawing, datasets, is_live=is_live)
    panel = _panel(drawing, f"score_{objective}", kinds, is_last=True, has_legend=False)
    name = drawing.axis(f"score_{objective}")[0]
    text = f"{name} along the strength alpha."
    return _spec(_sized(panel, SMALL), text, NARROW, datasets)


def _sized(drawn: Sequence[Spec], size: tuple[float, float]) -> Spec:
    return {"layer": drawn, "width": size[0], "height": size[1]}


def _spec(chart: Spec, description: str, layout: Layout, datasets: Spec) -> Spec:
    config = vega.config(vega.PAGE_INK, vega.PAGE_BACKGROUND, layout.columns)
    head = {"$schema": alt.SCHEMA_URL, "config": config, "description": description}
    return head | chart | {"datasets": datasets}


def _kinds(drawing: Drawing, datasets: Spec, *, is_live: bool) -> list[MarkKind]:
    """Kinds with a mark in the datasets, and those that the page may show later."""
    names = {row["kind"] for name in _POINTS for row in datasets[name]}
    names |= {FRONT} if datasets.get("front") else set()
    names |= {TIED, CHOSEN} if is_live else set()
    names |= {INTERVAL} if is_live and "cross" in datasets else set()
    return list(legend_kinds(drawing.selection, names))


def _has_strengths(drawing: Drawing, path: PathLine) -> bool:
    """Whether a path has points between the base and the checkpoint, or beyond it."""
    return any(drawing.candidate(i).point.alpha not in (0.0, 1.0) for i in path.ids)


def _alpha_datasets(drawing: Drawing) -> Spec:
    ids = set(drawing.alpha_ids())
    return {
        "choice": [{"alpha": drawing.selection.chosen.canonical.alpha}],
        "bands": drawing.bands(),
        "lines": drawing.lines(drawing.curves),
        "marks": drawing.curve_marks(),
        "overlay": [
            row for row in drawing.overlay() if row["id"] in ids and row["kind"] != INTERVAL
        ],
    }


def _panel(
    drawing: Drawing,
    field: str,
    kinds: Sequence[MarkKind],
    *,
    is_last: bool,
    has_legend: bool = True,
) -> list[Spec]:
    """One score along alpha: the curves, the choice and, for a role's score, bands and labels."""
    encoding = layers.panel_encoding(drawing, field, is_last=is_last)
    is_role = field in ROLES
    return [
        *([layers.band_layer(drawing, field, kinds, encoding)] if is_role else []),
        layers.choice_layer(encoding),
        layers.line_layer(kinds, encoding, "monotone", has_legend=has_legend),
        *(layers.mark_layer(n, kinds, encoding, has_legend=has_legend) for n in _POINTS),
        *(layers.label_layers(encoding, f"_{field}") if is_role else []),
    ]


def _label_datasets(labels: Sequence[Row]) -> dict[str, list[Row]]:
    """The needed labels, in bold, and the others."""
    return {
        "labels": [row for row in labels if row["is_needed"]],
        "path_labels": [row for row in labels if not row["is_needed"]],
    }
