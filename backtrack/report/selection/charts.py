"""The drawings: one Vega-Lite specification each, for the page and for the picture alike.

Ink is a parameter: the page passes `currentColor`, so that one drawing follows the page's theme
and prints in black; a picture has ink and paper of its own.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import altair as alt
import vl_convert

from backtrack.records import ROLES
from backtrack.report import labels
from backtrack.report.rows import (
    CHOSEN,
    CHOSEN_COLOUR,
    FRONT,
    FRONT_COLOUR,
    TIED,
    Path,
    padded,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.records import Role
    from backtrack.report.rows import Drawing, Kind, Name

Spec = dict[str, Any]

PLACEMENT: Spec = {
    field: alt.expr(f"datum.{field}") for field in ("align", "baseline", "dx", "dy")
}


@dataclass(frozen=True)
class Layout:
    """How much room there is; the page picks the layout that fits and stretches its width.

    Attributes:
        plane: Width and height of the plane in pixels.
        panel: Likewise of a panel along alpha.
        columns: Of the legend.
        has_waymarks: Whether steps and alphas are written along the paths.
    """

    plane: labels.Spot
    panel: labels.Spot
    columns: int
    has_waymarks: bool


WIDE = Layout((720.0, 440.0), (720.0, 190.0), columns=4, has_waymarks=True)
NARROW = Layout((270.0, 320.0), (270.0, 160.0), columns=2, has_waymarks=False)
LAYOUTS = (WIDE, NARROW)
SMALL = (200.0, 120.0)
"""Width and height of an objective's panel, in pixels."""
_POINTS = ("marks", "overlay")


def plane_spec(drawing: Drawing, layout: Layout = WIDE, *, is_live: bool = False) -> Spec:
    """Target against general: paths, front, tied points and the choice. Better is right and up.

    Args:
        drawing: What is drawn.
        layout: How much room there is.
        is_live: The page moves the choice: what is drawn of it may come to be.
    """
    names = _plane_names(drawing, layout, has_choice=not is_live)
    datasets = {
        "front": drawing.lines([Path(FRONT, drawing.front)]),
        "lines": drawing.lines(plane_paths(drawing)),
        "cross": drawing.cross(),
        "marks": drawing.marks(),
        "overlay": drawing.overlay(),
        **_split(names),
    }
    encoding = _plane_encoding(drawing)
    kinds = _kinds(drawing, datasets, is_live=is_live)
    chart = alt.LayerChart(
        layer=[
            _named("front")
            .mark_line(
                interpolate="step-before", color=FRONT_COLOUR, strokeDash=[5, 3], strokeWidth=1.5
            )
            .encode(order=alt.Order("place:Q"), **encoding),
            _lines(kinds, encoding),
            _named("cross")
            .mark_rule(color=CHOSEN_COLOUR, strokeWidth=1.5, opacity=0.8)
            .encode(x2=alt.X2("target_end:Q"), y2=alt.Y2("general_end:Q"), **encoding),
            _marks("marks", kinds, encoding),
            _marks("overlay", kinds, encoding),
            *_texts(encoding),
        ]
    ).properties(width=layout.plane[0], height=layout.plane[1])
    said = "Every measured point, target score against general score, on the selection items."
    return _spec(chart, said, layout, datasets)


def plane_paths(drawing: Drawing) -> list[Path]:
    """The training path, and the paths along alpha that have more than their two ends."""
    return [drawing.training, *(c for c in drawing.curves if _has_strengths(drawing, c))]


def alpha_spec(drawing: Drawing, layout: Layout = WIDE, *, is_live: bool = False) -> Spec:
    """Each role's score along alpha, one panel a role."""
    datasets = _alpha_datasets(drawing)
    kinds = _kinds(drawing, {**datasets, "front": []}, is_live=is_live)
    panels = []
    for role in ROLES:
        names = _panel_names(drawing, role, layout, has_choice=not is_live)
        datasets |= {f"{name}_{role}": rows for name, rows in _split(names).items()}
        panel = _panel(drawing, role, kinds, is_last=role == ROLES[-1])
        panels.append(panel.properties(width=layout.panel[0], height=layout.panel[1]))
    chart = alt.vconcat(*panels, spacing=14).resolve_scale(x="shared")
    said = "Target and general score along the strength alpha, on the selection items."
    return _spec(chart, said, layout, datasets)


def objective_spec(drawing: Drawing, objective: int, *, is_live: bool = False) -> Spec:
    """One objective along alpha, in a small panel without a legend.

    Args:
        drawing: What is drawn.
        objective: Place among the selection's.
        is_live: See `plane_spec`.
    """
    datasets = {n: rows for n, rows in _alpha_datasets(drawing).items() if n != "bands"}
    kinds = _kinds(drawing, datasets, is_live=is_live)
    panel = _panel(drawing, f"score_{objective}", kinds, is_last=True, has_legend=False)
    name = drawing.axis(f"score_{objective}")[0]
    chart = panel.properties(width=SMALL[0], height=SMALL[1])
    return _spec(chart, f"{name} along the strength alpha.", NARROW, datasets)


def _spec(
    chart: alt.LayerChart | alt.VConcatChart, description: str, layout: Layout, datasets: Spec
) -> Spec:
    # Not validated once more: checking the whole costs seconds where there are many layers.
    found: Spec = chart.properties(description=description).to_dict(validate=False)
    found["config"] = config("currentColor", "transparent", layout.columns)
    return found | {"datasets": datasets}


def _named(name: str) -> alt.Chart:
    """A chart of a dataset that the specification holds, or the page fills in."""
    return alt.Chart(alt.NamedData(name=name))


def _kinds(drawing: Drawing, datasets: Spec, *, is_live: bool) -> list[Kind]:
    """Kinds with a mark in the datasets, and those the page may come to show."""
    names = {row["kind"] for name in ("marks", "overlay") for row in datasets[name]}
    names |= {FRONT} if datasets.get("front") else set()
    names |= {TIED, CHOSEN, drawing.reading_name} if is_live else set()
    return list(drawing.kinds(names))


def _axis(drawing: Drawing, field: str, domain: list[float]) -> Spec:
    """Arguments of a channel: better is right or up, and the title says how."""
    name, unit, is_reversed = drawing.axis(field)
    way = "less is better, scale reversed" if is_reversed else "more is better"
    return {
        "title": [f"{name} ({unit})", f"{way} \N{RIGHTWARDS ARROW}"],
        "scale": alt.Scale(domain=domain, nice=False, zero=False, reverse=is_reversed),
    }


def _plane_encoding(drawing: Drawing) -> Spec:
    x = _axis(drawing, "target", drawing.domain("target"))
    y = _axis(drawing, "general", drawing.domain("general"))
    return {
        "x": alt.X("target:Q", axis=alt.Axis(tickCount=8), **x),
        "y": alt.Y("general:Q", axis=_fixed_axis(), **y),
    }


def _fixed_axis() -> alt.Axis:
    """A vertical axis of fixed width, so that the page knows how much room a drawing leaves."""
    return alt.Axis(minExtent=44, maxExtent=44, tickCount=6)


def _has_strengths(drawing: Drawing, path: Path) -> bool:
    """Whether there is more to it than the way from the base to the checkpoint."""
    return any(drawing.candidate(i).point.alpha not in (0.0, 1.0) for i in path.ids)


def _legend(*, has_legend: bool) -> alt.Legend | None:
    """One legend for a drawing: layers that disagree about it would be warned of."""
    return alt.Legend(title=None, labelLimit=0, symbolOpacity=1) if has_legend else None


def _lines(kinds: Sequence[Kind], encoding: Spec, *, has_legend: bool = True) -> alt.Chart:
    drawn: alt.Chart = (
        _named("lines")
        .mark_line(strokeWidth=2, opacity=0.75)
        .encode(
            color=alt.Color(
                "kind:N",
                scale=_scale(kinds, "colour"),
                legend=_legend(has_legend=has_legend),
            ),
            detail="path:N",
            order=alt.Order("place:Q"),
            **encoding,
        )
    )
    return drawn


def _marks(
    name: str, kinds: Sequence[Kind], encoding: Spec, *, has_legend: bool = True
) -> alt.Chart:
    """Points, with the legend of their kinds."""
    legend = _legend(has_legend=has_legend)
    drawn: alt.Chart = (
        _named(name)
        .mark_point(filled=True, opacity=1)
        .encode(
            color=alt.Color("kind:N", scale=_scale(kinds, "colour"), legend=legend),
            shape=alt.Shape("kind:N", scale=_scale(kinds, "shape"), legend=legend),
            size=alt.Size("kind:O", scale=_scale(kinds, "size"), legend=legend),
            opacity=alt.condition("datum.is_feasible", alt.value(1.0), alt.value(0.35)),
            tooltip=alt.Tooltip("id:Q"),
            **encoding,
        )
    )
    return drawn


def _scale(kinds: Sequence[Kind], look: str) -> alt.Scale:
    """What each kind looks like. Left to itself, Vega-Lite would spread sizes as a range."""
    return alt.Scale(
        type="ordinal",
        domain=[kind.name for kind in kinds],
        range=[getattr(kind, look) for kind in kinds],
    )


def _alpha_datasets(drawing: Drawing) -> Spec:
    shown = set(drawing.along_alpha())
    return {
        "choice": [{"alpha": drawing.selection.chosen.canonical.alpha}],
        "bands": drawing.bands(),
        "lines": drawing.lines(drawing.curves),
        "marks": drawing.curve_marks(),
        "overlay": [
            row
            for row in drawing.overlay()
            if row["id"] in shown and row["kind"] != drawing.reading_name
        ],
    }


def _panel(
    drawing: Drawing,
    field: str,
    kinds: Sequence[Kind],
    *,
    is_last: bool,
    has_legend: bool = True,
) -> alt.LayerChart:
    """One score along alpha: the curves, the choice and, where it is a role's, its ends."""
    encoding = _panel_encoding(drawing, field, is_last=is_last)
    rule = _named("choice").mark_rule(color=CHOSEN_COLOUR, strokeDash=[3, 3], opacity=0.8)
    return alt.LayerChart(
        layer=[
            *([_bands(drawing, field, kinds, encoding)] if field in ROLES else []),
            rule.encode(x=encoding["x"]),
            _lines(kinds, encoding, has_legend=has_legend),
            *(_marks(name, kinds, encoding, has_legend=has_legend) for name in _POINTS),
            *(_texts(encoding, f"_{field}") if field in ROLES else []),
        ]
    )


def _bands(drawing: Drawing, role: str, kinds: Sequence[Kind], encoding: Spec) -> alt.Chart:
    """How sure a role's smoothed scores are, along each curve."""
    drawn: alt.Chart = (
        _named("bands")
        .mark_area(opacity=0.16)
        .encode(
            color=alt.Color(
                "kind:N", scale=_scale(kinds, "colour"), legend=_legend(has_legend=True)
            ),
            detail="path:N",
            x=encoding["x"],
            y=_score_channel(drawing, role, f"{role}_low"),
            y2=alt.Y2(f"{role}_high:Q"),
        )
    )
    return drawn


def _panel_encoding(drawing: Drawing, field: str, *, is_last: bool) -> Spec:
    axis = alt.Axis(tickCount=8 if field in ROLES else 4, labels=is_last, ticks=is_last)
    title = None
    if is_last:
        is_wide = field in ROLES
        title = "Strength alpha: 0 is the base, 1 the checkpoint" if is_wide else "alpha"
    scale = alt.Scale(domain=_alphas(drawing), nice=False, zero=False)
    return {
        "x": alt.X("alpha:Q", title=title, axis=axis, scale=scale),
        "y": _score_channel(drawing, field, field),
    }


def _score_channel(drawing: Drawing, field: str, shown: str) -> alt.Y:
    """The vertical axis of a panel along alpha, for whatever is shown of its score."""
    domain = drawing.domain(field, drawing.along_alpha())
    return alt.Y(f"{shown}:Q", axis=_fixed_axis(), **_axis(drawing, field, domain))


def _alphas(drawing: Drawing) -> list[float]:
    shown = (drawing.candidate(i).point.alpha for i in drawing.along_alpha())
    return padded([0.0, 1.0, *shown])


def _plane_names(drawing: Drawing, layout: Layout, *, has_choice: bool) -> list[Spec]:
    """Names of base, final and choice; some steps and alphas, where there is room for them."""
    frame = labels.Frame(drawing.ends("target"), drawing.ends("general"), layout.plane)

    def spot(place: int) -> labels.Spot:
        candidate = drawing.candidate(place)
        return frame.spot(candidate.target, candidate.general)

    paths = [drawing.training, *drawing.curves]
    lines = [[spot(i) for i in path.ids] for path in paths]
    for row in drawing.cross():
        ends = (("target", "general"), ("target_end", "general_end"))
        lines.append([frame.spot(row[x], row[y]) for x, y in ends])
    is_short = not layout.has_waymarks
    names = drawing.names(drawing.ids, is_short=is_short, has_choice=has_choice)
    names += drawing.waymarks() if layout.has_waymarks else []
    marks = [spot(i) for i in drawing.ids]
    places = labels.place([_label(n, spot(n.place)) for n in names], marks, lines, layout.plane)
    return _placed(drawing, names, places)


def _panel_names(drawing: Drawing, role: Role, layout: Layout, *, has_choice: bool) -> list[Spec]:
    shown = drawing.along_alpha()
    low, high = _alphas(drawing)
    frame = labels.Frame((low, high), drawing.ends(role, shown), layout.panel)

    def spot(place: int) -> labels.Spot:
        candidate = drawing.candidate(place)
        return frame.spot(candidate.point.alpha, getattr(candidate, role))

    lines = [[spot(i) for i in curve.ids] for curve in drawing.curves]
    if drawing.chosen is not None:
        x, _ = spot(drawing.chosen)
        lines.append([(x, 0.0), (x, layout.panel[1])])
    is_short = not layout.has_waymarks
    names = drawing.names(shown, is_short=is_short, has_choice=has_choice)
    wanted = [_label(name, spot(name.place)) for name in names]
    places = labels.place(wanted, [spot(i) for i in shown], lines, layout.panel)
    return _placed(drawing, names, places)


def _label(name: Name, anchor: labels.Spot) -> labels.Label:
    gap = 13.0 if name.is_needed else 9.0
    return labels.Label(name.text, anchor, is_needed=name.is_needed, gap=gap)


def _placed(
    drawing: Drawing, names: Sequence[Name], places: Sequence[labels.Placed | None]
) -> list[Spec]:
    """The names that found a place."""
    return [
        drawing.row(name.place, "")
        | {"text": name.text, "is_needed": name.is_needed, **dataclasses.asdict(place)}
        for name, place in zip(names, places, strict=True)
        if place is not None
    ]


def _split(names: Sequence[Spec]) -> dict[str, list[Spec]]:
    """The needed names, in bold, and the others."""
    return {
        "names": [row for row in names if row["is_needed"]],
        "waymarks": [row for row in names if not row["is_needed"]],
    }


def _texts(encoding: Spec, end: str = "") -> list[alt.Chart]:
    drawn = [
        _named(f"names{end}").mark_text(fontWeight=600, **PLACEMENT),
        _named(f"waymarks{end}").mark_text(fontSize=10, opacity=0.7, **PLACEMENT),
    ]
    return [text.encode(text=alt.Text("text:N"), **encoding) for text in drawn]
