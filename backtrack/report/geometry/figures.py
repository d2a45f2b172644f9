"""Charts of a diagnosis, after the figures of PEFT-Arena (arXiv 2605.28819).

geometry-profiles     retention and adaptation along singular directions, at one location
geometry-drift        drift by block, on general and target prompts
geometry-activations  change of the representation by location
geometry-path         strength, drift and Procrustes residual of each block against alpha
geometry-forgetting   metrics against measured forgetting, a mark per point
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from backtrack.records.diagnosis import mean_metrics
from backtrack.report import vega
from backtrack.report.geometry.rows import LABELS, label, of_point
from backtrack.run.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from backtrack.records.diagnosis import Diagnosis, Forgetting, ModuleGeometry

Spec = dict[str, Any]
Row = dict[str, Any]
SIZE = (300.0, 210.0)
COLOURS = ("#2b83c6", "#d9480f", "#009e73", "#b0599c", "#c98a00", "#6f7782")
PATH_METRICS = ("strength", "drift.relative/general", "activations.procrustes/general")
SCATTERED = (
    "drift.update_normed/general",
    "drift.relative/general",
    "activations.procrustes/general",
    "activations.cka/general",
    "divergence/target",
)
MAIN_LOCATION = "late.mlp"
"""Location whose profiles are drawn: the paper's example."""


def write_figures(
    folder: Path, diagnosis: Diagnosis, lines: Sequence[ModuleGeometry]
) -> tuple[Path, ...]:
    """Draw a diagnosis's charts into `figures/` of a run's directory and return the files."""
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    written = []
    for name, spec in specs(diagnosis, lines).items():
        written.append(figures / f"geometry-{name}.png")
        write_atomically(written[-1], vega.picture(spec))
    return tuple(written)


def specs(diagnosis: Diagnosis, lines: Sequence[ModuleGeometry]) -> dict[str, Spec]:
    """Vega-Lite specifications by name; charts without data are left out."""
    makers: dict[str, Callable[[Diagnosis, Sequence[ModuleGeometry]], list[Row]]] = {
        "profiles": _profile_rows,
        "drift": _drift_rows,
        "activations": _activation_rows,
        "path": _path_rows,
        "forgetting": lambda d, _lines: forgetting_rows(d.forgetting),
    }
    drawn: dict[str, Callable[[list[Row]], Any]] = {
        "profiles": _profiles,
        "drift": _drift,
        "activations": _activations,
        "path": _path,
        "forgetting": scatter,
    }
    rows = {name: make(diagnosis, lines) for name, make in makers.items()}
    return {name: vega.finished(drawn[name](found)) for name, found in rows.items() if found}


def _chart(rows: list[Row]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=rows))


def _facets(chart: Any, field: str, columns: int, order: Sequence[str]) -> Any:
    """One panel per value of a field, each with its own scales."""
    return (
        chart.properties(width=SIZE[0], height=SIZE[1])
        .facet(facet=alt.Facet(f"{field}:N", title=None, sort=list(order)), columns=columns)
        .resolve_scale(x="independent", y="independent")
    )


def _colour(field: str, order: Sequence[str]) -> alt.Color:
    return alt.Color(
        f"{field}:N",
        title=None,
        scale=alt.Scale(domain=list(order), range=list(COLOURS[: len(order)])),
        legend=alt.Legend(labelLimit=0),
    )


def _unique(rows: Sequence[Row], field: str) -> list[str]:
    return list(dict.fromkeys(row[field] for row in rows))


def _profile_rows(diagnosis: Diagnosis, lines: Sequence[ModuleGeometry]) -> list[Row]:
    module = diagnosis.locations.get(MAIN_LOCATION) or diagnosis.modules[-1]
    rows = []
    for line in lines:
        if line.module == module and line.spectrum is not None and line.point in diagnosis.points:
            for kind in ("retention", "adaptation"):
                pairs = zip(line.spectrum.directions, getattr(line.spectrum, kind), strict=True)
                title = f"{kind} profile of {module}"
                rows += [
                    {"panel": title, "point": str(line.point), "direction": d, "value": v}
                    for d, v in pairs
                    if v > 0
                ]
    return rows


def _profiles(rows: list[Row]) -> Any:
    lines = _chart(rows).mark_line(strokeWidth=1.5, opacity=0.85)
    encoded = lines.encode(
        x=alt.X(
            "direction:Q",
            title="singular direction of W0",
            scale=alt.Scale(type="log", nice=False),
        ),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(type="log"), axis=alt.Axis(format=".0e")),
        color=_colour("point", _unique(rows, "point")),
    )
    return _facets(encoded, "panel", 2, _unique(rows, "panel"))


def _drift_rows(diagnosis: Diagnosis, lines: Sequence[ModuleGeometry]) -> list[Row]:
    return [
        {
            "panel": f"{LABELS[metric]}, {point}",
            "block": block,
            "prompts": f"{role} prompts",
            "value": found[f"{metric}/{role}"],
        }
        for metric in ("drift.relative", "drift.update_normed")
        for point in diagnosis.points
        for block, found in _by_block(of_point(lines, point))
        for role in ("general", "target")
        if f"{metric}/{role}" in found
    ]


def _by_block(lines: Sequence[ModuleGeometry]) -> list[tuple[int, dict[str, float]]]:
    blocks = sorted({line.block for line in lines if line.block is not None})
    return [(b, mean_metrics(line for line in lines if line.block == b)) for b in blocks]


def _drift(rows: list[Row]) -> Any:
    lines = _chart(rows).mark_line(point={"filled": True, "size": 40}, strokeWidth=1.8)
    encoded = lines.encode(
        x=alt.X("block:O", title="block of layers", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=True)),
        color=_colour("prompts", ["general prompts", "target prompts"]),
    )
    return _facets(encoded, "panel", 2, _unique(rows, "panel"))


def _activation_rows(diagnosis: Diagnosis, lines: Sequence[ModuleGeometry]) -> list[Row]:
    names = {path: name for name, path in diagnosis.locations.items()}
    metrics = [m for m in LABELS if m.startswith("activations.")]
    return [
        {
            "panel": label(f"{metric}/general"),
            "location": names[line.module],
            "point": str(line.point),
            "value": line.metrics[f"{metric}/general"],
        }
        for metric in metrics
        for line in lines
        if line.point in diagnosis.points and "general" in line.activations
    ]


def _activations(rows: list[Row]) -> Any:
    lines = _chart(rows).mark_line(point={"filled": True, "size": 45}, strokeWidth=1.2)
    encoded = lines.encode(
        x=alt.X("location:N", title=None, sort=_unique(rows, "location")),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        color=_colour("point", _unique(rows, "point")),
    )
    return _facets(encoded, "panel", 3, _unique(rows, "panel"))


def _path_rows(diagnosis: Diagnosis, lines: Sequence[ModuleGeometry]) -> list[Row]:
    final = max(point.step for point in diagnosis.points)
    on_path = [p for p in diagnosis.path if p.step == final and p.profile == "uniform"]
    if len(on_path) < 2:
        return []
    zero = [
        {"panel": label(metric), "alpha": 0.0, "block": block, "value": 0.0}
        for metric in PATH_METRICS
        for block, _ in _by_block(of_point(lines, on_path[-1]))
    ]
    return zero + [
        {"panel": label(metric), "alpha": point.alpha, "block": block, "value": found[metric]}
        for metric in PATH_METRICS
        for point in on_path
        for block, found in _by_block(of_point(lines, point))
        if metric in found
    ]


def _path(rows: list[Row]) -> Any:
    lines = _chart(rows).mark_line(point={"filled": True, "size": 30}, strokeWidth=1.6)
    encoded = lines.encode(
        x=alt.X("alpha:Q", title="strength alpha"),
        y=alt.Y("value:Q", title=None),
        color=alt.Color("block:O", title="block", scale=alt.Scale(scheme="viridis")),
    )
    return _facets(encoded, "panel", 3, _unique(rows, "panel"))


def forgetting_rows(measured: Sequence[Forgetting]) -> list[Row]:
    """A row per metric and point or entrant."""
    return [
        {
            "panel": label(metric),
            "name": row.name.partition(" (seed")[0],
            "value": row.metrics[metric],
            "forgetting": row.forgetting,
        }
        for metric in SCATTERED
        for row in measured
        if metric in row.metrics
    ]


def scatter(rows: list[Row], *, has_names: bool = False) -> Any:
    """Metrics against forgetting, a mark per point or entrant, with names as colours if asked."""
    marks = _chart(rows).mark_point(filled=True, size=70, color=COLOURS[0])
    encoded = marks.encode(
        x=alt.X("value:Q", title=None, scale=alt.Scale(zero=False)),
        y=alt.Y("forgetting:Q", title="general score lost (points)"),
        tooltip=["name:N", "value:Q", "forgetting:Q"],
    )
    if has_names:
        scale = alt.Scale(domain=_unique(rows, "name"), scheme="category20")
        encoded = encoded.encode(color=alt.Color("name:N", title=None, scale=scale))
    return _facets(encoded, "panel", 2, _unique(rows, "panel"))
