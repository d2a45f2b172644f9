"""Layers and axes of the charts of a selection, in Altair.

A layer draws a named dataset, which the specification holds or the page's script fills in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import altair as alt

from backtrack.records import ROLES
from backtrack.report.selection.labels import alpha_domain
from backtrack.report.selection.mark_kinds import CHOSEN_COLOUR, FRONT_COLOUR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.report.selection.drawing import Drawing
    from backtrack.report.selection.mark_kinds import MarkKind
    from backtrack.report.vega import Spec

LABEL_POSITION: Spec = {
    field: alt.expr(f"datum.{field}") for field in ("align", "baseline", "dx", "dy")
}


def plane_encoding(drawing: Drawing) -> Spec:
    """Target on the horizontal axis, general on the vertical one."""
    x = _axis(drawing, "target", drawing.domain("target"))
    y = _axis(drawing, "general", drawing.domain("general"))
    return {
        "x": alt.X("target:Q", axis=alt.Axis(tickCount=8), **x),
        "y": alt.Y("general:Q", axis=_fixed_axis(), **y),
    }


def panel_encoding(drawing: Drawing, field: str, *, is_last: bool) -> Spec:
    """Alpha on the horizontal axis, one score on the vertical one."""
    axis = alt.Axis(tickCount=8 if field in ROLES else 4, labels=is_last, ticks=is_last)
    title = None
    if is_last:
        is_wide = field in ROLES
        title = "Strength alpha: 0 is the base, 1 the checkpoint" if is_wide else "alpha"
    scale = alt.Scale(domain=alpha_domain(drawing), nice=False, zero=False)
    return {
        "x": alt.X("alpha:Q", title=title, axis=axis, scale=scale),
        "y": _score_channel(drawing, field, field),
    }


def front_layer(encoding: Spec) -> Spec:
    """The front, as steps."""
    line = _named("front").mark_line(
        interpolate="step-before", color=FRONT_COLOUR, strokeDash=[5, 3], strokeWidth=1.5
    )
    return _encoded(line, order=alt.Order("order:Q"), **encoding)


def front_band_layer(encoding: Spec) -> Spec:
    """The intervals of the front's smoothed scores on both axes."""
    return _crossing("front_bands", encoding, color=FRONT_COLOUR, strokeWidth=5, opacity=0.3)


def cross_layer(encoding: Spec) -> Spec:
    """The chosen point's intervals on both axes."""
    return _crossing("cross", encoding, color=CHOSEN_COLOUR, strokeWidth=1.5, opacity=0.8)


def _crossing(name: str, encoding: Spec, **style: Any) -> Spec:
    ends = {"x2": alt.X2("target_end:Q"), "y2": alt.Y2("general_end:Q")}
    return _encoded(_named(name).mark_rule(**style), **ends, **encoding)


def cross_label_layer(encoding: Spec) -> Spec:
    """Beside the cross, which items it is of."""
    style: Spec = {"align": "left", "baseline": "bottom", "dx": 7, "dy": -5, "fontSize": 10}
    text = _named("cross_label").mark_text(fill=CHOSEN_COLOUR, **style)
    return _encoded(text, text=alt.Text("text:N"), **encoding)


def choice_layer(encoding: Spec) -> Spec:
    """A vertical line at the chosen alpha."""
    rule = _named("choice").mark_rule(color=CHOSEN_COLOUR, strokeDash=[3, 3], opacity=0.8)
    return _encoded(rule, x=encoding["x"])


def line_layer(
    kinds: Sequence[MarkKind],
    encoding: Spec,
    interpolate: Literal["catmull-rom", "monotone"],
    *,
    has_legend: bool = True,
) -> Spec:
    """A curve through the smoothed scores of each path."""
    colour = alt.Color(
        "kind:N", scale=_scale(kinds, "colour"), legend=_legend(has_legend=has_legend)
    )
    line = _named("lines").mark_line(strokeWidth=2, opacity=0.75, interpolate=interpolate)
    order, detail = alt.Order("order:Q"), alt.Detail("path:N")
    return _encoded(line, color=colour, detail=detail, order=order, **encoding)


def mark_layer(
    name: str, kinds: Sequence[MarkKind], encoding: Spec, *, has_legend: bool = True
) -> Spec:
    """Points of a dataset, with the legend of their kinds."""
    legend = _legend(has_legend=has_legend)
    return _encoded(
        _named(name).mark_point(filled=True, opacity=1, strokeWidth=1),
        color=alt.Color("kind:N", scale=_scale(kinds, "colour"), legend=legend),
        shape=alt.Shape("kind:N", scale=_scale(kinds, "shape"), legend=legend),
        size=alt.Size("kind:O", scale=_scale(kinds, "size"), legend=legend),
        stroke=alt.Stroke("kind:N", scale=_scale(kinds, "colour"), legend=legend),
        fillOpacity=alt.FillOpacityValue(0.15, condition=_where("datum.is_whole")),
        opacity=alt.OpacityValue(0.35, condition=_where("datum.is_feasible")),
        tooltip=alt.Tooltip("id:Q"),
        **encoding,
    )


def band_layer(drawing: Drawing, role: str, kinds: Sequence[MarkKind], encoding: Spec) -> Spec:
    """Intervals of a role's smoothed scores along each curve."""
    return _encoded(
        _named("bands").mark_area(opacity=0.16),
        color=alt.Color("kind:N", scale=_scale(kinds, "colour"), legend=_legend(has_legend=True)),
        detail=alt.Detail("path:N"),
        x=encoding["x"],
        y=_score_channel(drawing, role, f"{role}_low"),
        y2=alt.Y2(f"{role}_high:Q"),
    )


def label_layers(encoding: Spec, suffix: str = "") -> list[Spec]:
    """Labels of base, chosen and final in bold, then those of steps and alphas."""
    layers = [
        _named(f"labels{suffix}").mark_text(fontWeight=600, **LABEL_POSITION),
        _named(f"path_labels{suffix}").mark_text(fontSize=10, opacity=0.7, **LABEL_POSITION),
    ]
    return [_encoded(layer, text=alt.Text("text:N"), **encoding) for layer in layers]


def _where(test: str) -> Spec:
    """The full value where a test holds."""
    return {"test": test, "value": 1.0}


def _encoded(chart: alt.Chart, **channels: Any) -> Spec:
    # Composed as plain data: Altair copies every layer in depth whenever charts are composed.
    spec: Spec = chart.encode(**channels).to_dict(validate=False, context={"top_level": False})
    return spec


def _named(name: str) -> alt.Chart:
    return alt.Chart(alt.NamedData(name=name))


def _axis(drawing: Drawing, field: str, domain: list[float]) -> Spec:
    """Arguments of a channel: better is right or up, and the title says which that is."""
    name, unit, is_reversed = drawing.axis(field)
    direction = "less is better, scale reversed" if is_reversed else "more is better"
    return {
        "title": [f"{name} ({unit})", f"{direction} \N{RIGHTWARDS ARROW}"],
        "scale": alt.Scale(domain=domain, nice=False, zero=False, reverse=is_reversed),
    }


def _score_channel(drawing: Drawing, field: str, shown: str) -> alt.Y:
    """The vertical axis of a panel along alpha: the scale of `field`, the values of `shown`."""
    domain = drawing.domain(field, drawing.alpha_ids())
    return alt.Y(f"{shown}:Q", axis=_fixed_axis(), **_axis(drawing, field, domain))


def _fixed_axis() -> alt.Axis:
    """A vertical axis of fixed width, so that the page knows how wide the plot area is."""
    return alt.Axis(minExtent=44, maxExtent=44, tickCount=6)


def _legend(*, has_legend: bool) -> alt.Legend | None:
    """The same legend for every layer: Vega-Lite warns if layers disagree."""
    return alt.Legend(title=None, labelLimit=0, symbolOpacity=1) if has_legend else None


def _scale(kinds: Sequence[MarkKind], attribute: str) -> alt.Scale:
    """One value per kind. By default Vega-Lite would spread sizes over a range."""
    return alt.Scale(
        type="ordinal",
        domain=[kind.name for kind in kinds],
        range=[getattr(kind, attribute) for kind in kinds],
    )
