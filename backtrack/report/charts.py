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
    CHOSEN_COLOUR,
    FRONT,
    FRONT_COLOUR,
    TRAINING_COLOUR,
    Drawing,
    padded,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.records import Candidate, Role, Selection
    from backtrack.report.rows import Kind, Name, Row

Spec = dict[str, Any]

PICTURE_SCALE = 2.0
PICTURE_INK = "#22272e"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
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


def plane_spec(selection: Selection, layout: Layout = WIDE) -> Spec:
    """Target against general: paths, front, tied points and the choice. Better is right and up."""
    drawing = Drawing(selection)
    return _spec(
        alt.LayerChart(
            layer=[
                *_paths(drawing),
                *_cross(drawing),
                _marks(drawing, drawing.marks(), _plane_encoding(drawing), [FRONT]),
                *_plane_labels(drawing, layout),
            ]
        ).properties(width=layout.plane[0], height=layout.plane[1]),
        "Every measured point, target score against general score, on the selection items.",
        layout,
    )


def alpha_spec(selection: Selection, layout: Layout = WIDE) -> Spec:
    """Each role's score along alpha, one panel a role."""
    drawing = Drawing(selection)
    panels = [
        _panel(drawing, role, layout).properties(width=layout.panel[0], height=layout.panel[1])
        for role in ROLES
    ]
    return _spec(
        alt.vconcat(*panels, spacing=14).resolve_scale(x="shared"),
        "Target and general score along the strength alpha, on the selection items.",
        layout,
    )


def picture(spec: Spec) -> bytes:
    """The drawing as a PNG."""
    inked = spec | {"config": config(PICTURE_INK, "white")}
    return bytes(vl_convert.vegalite_to_png(inked, scale=PICTURE_SCALE, allowed_base_urls=[]))


@functools.cache
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script that asks for nothing."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def config(ink: str, background: str, columns: int = WIDE.columns) -> Spec:
    """How all drawings look."""
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 12}
    return {
        "font": FONT,
        "background": background,
        "view": {"stroke": ink, "strokeOpacity": 0.18},
        "axis": text
        | {
            "titleFontWeight": 500,
            "titlePadding": 8,
            "gridColor": ink,
            "gridOpacity": 0.09,
            "domain": False,
            "tickColor": ink,
            "tickOpacity": 0.3,
            "labelOpacity": 0.8,
            "labelPadding": 4,
        },
        "legend": text
        | {"orient": "top", "columns": columns, "columnPadding": 12}
        | {"layout": {"top": {"anchor": "start", "bounds": "full"}}},
        "text": {"fill": ink, "fontSize": 12},
    }


def _spec(chart: alt.LayerChart | alt.VConcatChart, description: str, layout: Layout) -> Spec:
    found: Spec = chart.properties(description=description).to_dict()
    found["config"] = config("currentColor", "transparent", layout.columns)
    return found


def _axis(drawing: Drawing, role: Role, domain: list[float]) -> Spec:
    """Arguments of a role's channel: better is right or up, and the title says how."""
    axis = drawing.selection.axes[role]
    way = "less is better, scale reversed" if drawing.is_reversed(role) else "more is better"
    return {
        "title": [f"{role.capitalize()} ({axis.unit})", f"{way} \N{RIGHTWARDS ARROW}"],
        "scale": alt.Scale(
            domain=domain, nice=False, zero=False, reverse=drawing.is_reversed(role)
        ),
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


def _chart(rows: Sequence[Row]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=list(rows)))


def _paths(drawing: Drawing) -> list[alt.Chart]:
    """Front, training path and curves along alpha, as lines."""
    encoding = _plane_encoding(drawing)
    front = _line(drawing, drawing.front, encoding)
    return [
        front.mark_line(
            interpolate="step-before", color=FRONT_COLOUR, strokeDash=[5, 3], strokeWidth=1.5
        ),
        _line(drawing, drawing.training, encoding, TRAINING_COLOUR),
        *(
            _line(drawing, curve.candidates, encoding, curve.kind.colour)
            for curve in drawing.curves
            if curve.has_strengths
        ),
    ]


def _line(
    drawing: Drawing, candidates: Sequence[Candidate], encoding: Spec, colour: str = FRONT_COLOUR
) -> alt.Chart:
    rows = [drawing.row(c, "") | {"place": i} for i, c in enumerate(candidates)]
    chart = _chart(rows).mark_line(strokeWidth=2, opacity=0.75, color=colour)
    drawn: alt.Chart = chart.encode(order=alt.Order("place:Q"), **encoding)
    return drawn


def _marks(
    drawing: Drawing, rows: Sequence[Row], encoding: Spec, also: Sequence[str] = ()
) -> alt.Chart:
    """Points, with the legend of their kinds and of those that are `also` drawn, as lines."""
    kinds = drawing.kinds({row["kind"] for row in rows}.union(also))
    legend = alt.Legend(title=None, labelLimit=0)
    drawn: alt.Chart = (
        _chart(rows)
        .mark_point(filled=True, opacity=1)
        .encode(
            color=alt.Color("kind:N", scale=_scale(kinds, "colour"), legend=legend),
            shape=alt.Shape("kind:N", scale=_scale(kinds, "shape"), legend=legend),
            size=alt.Size("kind:N", scale=_scale(kinds, "size"), legend=None),
            opacity=alt.condition("datum.is_feasible", alt.value(1.0), alt.value(0.35)),
            tooltip=[alt.Tooltip(f"{field}:N", title=title) for field, title in drawing.tooltip()],
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


def _cross(drawing: Drawing) -> list[alt.Chart]:
    """The chosen point's intervals on the report items, around their estimates."""
    if drawing.reading is None:
        return []
    target, general = drawing.reading.target, drawing.reading.general
    encoding = _plane_encoding(drawing)
    across = {"target": target.low, "end": target.high, "general": general.estimate}
    down = {"target": target.estimate, "general": general.low, "end": general.high}
    return [
        _rule([across]).encode(x2=alt.X2("end:Q"), **encoding),
        _rule([down]).encode(y2=alt.Y2("end:Q"), **encoding),
    ]


def _rule(rows: Sequence[Row]) -> alt.Chart:
    drawn: alt.Chart = _chart(rows).mark_rule(color=CHOSEN_COLOUR, strokeWidth=1.5, opacity=0.8)
    return drawn


def _panel(drawing: Drawing, role: Role, layout: Layout) -> alt.LayerChart:
    """One role along alpha: the drawing's curves, the choice, and the two ends by name."""
    shown = drawing.along_alpha()
    encoding = _panel_encoding(drawing, role, shown)
    return alt.LayerChart(
        layer=[
            *_choice(drawing, encoding),
            *(_line(drawing, c.candidates, encoding, c.kind.colour) for c in drawing.curves),
            _marks(drawing, drawing.curve_marks(), encoding),
            *_panel_labels(drawing, role, layout, encoding),
        ]
    )


def _panel_encoding(drawing: Drawing, role: Role, shown: Sequence[Candidate]) -> Spec:
    is_last = role == ROLES[-1]
    axis = alt.Axis(tickCount=8, labels=is_last, ticks=is_last)
    title = "Strength alpha: 0 is the base, 1 the checkpoint" if is_last else None
    scale = alt.Scale(domain=_alphas(shown), nice=False, zero=False)
    y = _axis(drawing, role, drawing.domain(role, shown))
    return {
        "x": alt.X("alpha:Q", title=title, axis=axis, scale=scale),
        "y": alt.Y(f"{role}:Q", axis=_fixed_axis(), **y),
    }


def _alphas(shown: Sequence[Candidate]) -> list[float]:
    return padded([0.0, 1.0, *(c.point.alpha for c in shown)])


def _choice(drawing: Drawing, encoding: Spec) -> list[alt.Chart]:
    """A line through the panel at the chosen alpha."""
    if drawing.chosen is None:
        return []
    rule = _rule([{"alpha": drawing.selection.chosen.canonical.alpha}])
    return [rule.mark_rule(color=CHOSEN_COLOUR, strokeDash=[3, 3]).encode(x=encoding["x"])]


def _plane_labels(drawing: Drawing, layout: Layout) -> list[alt.Chart]:
    """Names of base, final and choice; some steps and alphas, where there is room for them."""
    frame = labels.Frame(drawing.ends("target"), drawing.ends("general"), layout.plane)

    def spot(candidate: Candidate) -> labels.Spot:
        return frame.spot(candidate.target, candidate.general)

    paths = [drawing.training, *(curve.candidates for curve in drawing.curves)]
    lines = [[spot(c) for c in path] for path in paths]
    if drawing.reading is not None:
        target, general = drawing.reading.target, drawing.reading.general
        lines.append([frame.spot(x, general.estimate) for x in (target.low, target.high)])
        lines.append([frame.spot(target.estimate, y) for y in (general.low, general.high)])
    names = drawing.names(drawing.candidates, is_short=not layout.has_waymarks)
    names += drawing.waymarks() if layout.has_waymarks else []
    wanted = [_label(name, spot(name.candidate)) for name in names]
    marks = [spot(c) for c in drawing.candidates]
    places = labels.place(wanted, marks, lines, layout.plane)
    return _texts(names, places, _plane_encoding(drawing))


def _panel_labels(drawing: Drawing, role: Role, layout: Layout, encoding: Spec) -> list[alt.Chart]:
    shown = drawing.along_alpha()
    low, high = _alphas(shown)
    frame = labels.Frame((low, high), drawing.ends(role, shown), layout.panel)

    def spot(candidate: Candidate) -> labels.Spot:
        return frame.spot(candidate.point.alpha, getattr(candidate, role))

    lines = [[spot(c) for c in curve.candidates] for curve in drawing.curves]
    if drawing.chosen is not None:
        x, _ = spot(drawing.chosen)
        lines.append([(x, 0.0), (x, layout.panel[1])])
    names = drawing.names(shown, is_short=not layout.has_waymarks)
    wanted = [_label(name, spot(name.candidate)) for name in names]
    places = labels.place(wanted, [spot(c) for c in shown], lines, layout.panel)
    return _texts(names, places, encoding)


def _label(name: Name, anchor: labels.Spot) -> labels.Label:
    gap = 13.0 if name.is_needed else 9.0
    return labels.Label(name.text, anchor, is_needed=name.is_needed, gap=gap)


def _texts(
    names: Sequence[Name], places: Sequence[labels.Placed | None], encoding: Spec
) -> list[alt.Chart]:
    """The names that found a place, in two layers: the needed ones are bold."""
    rows = [
        {
            "target": name.candidate.target,
            "general": name.candidate.general,
            "alpha": name.candidate.point.alpha,
            "text": name.text,
            "is_needed": name.is_needed,
            **dataclasses.asdict(place),
        }
        for name, place in zip(names, places, strict=True)
        if place is not None
    ]
    needed = _chart([row for row in rows if row["is_needed"]])
    minor = _chart([row for row in rows if not row["is_needed"]])
    drawn = [
        needed.mark_text(fontWeight=600, **PLACEMENT),
        minor.mark_text(fontSize=10, opacity=0.7, **PLACEMENT),
    ]
    return [text.encode(text=alt.Text("text:N"), **encoding) for text in drawn]
