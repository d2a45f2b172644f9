"""What all charts share: their style, PNG pictures, and Vega's script.

Ink is a parameter: a page passes `currentColor`, so that a chart follows the page's theme and
prints in black; a picture has a fixed ink on white paper.
"""

from __future__ import annotations

import functools
from typing import Any

import vl_convert

Spec = dict[str, Any]

PICTURE_SCALE = 2.0
PICTURE_INK = "#22272e"
PAGE_INK = "currentColor"
PAGE_BACKGROUND = "transparent"
LEGEND_COLUMNS = 4
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
TRAINING_COLOUR = "#2b83c6"
FINAL_COLOUR = "#c98a00"


def picture(spec: Spec) -> bytes:
    """A chart as a PNG."""
    inked = spec | {"config": config(PICTURE_INK, "white")}
    return bytes(vl_convert.vegalite_to_png(inked, scale=PICTURE_SCALE, allowed_base_urls=[]))


@functools.cache
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script that requests nothing."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def config(ink: str, background: str, columns: int = LEGEND_COLUMNS) -> Spec:
    """Vega-Lite configuration of all charts.

    Args:
        ink: Colour of text and lines.
        background: Colour behind the chart.
        columns: Of the legend.
    """
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
        "title": {"color": ink},
        "header": {"labelColor": ink, "labelFontSize": 12, "labelFontWeight": 500, "title": None},
    }


def finished(chart: Any) -> Spec:
    """The specification of an Altair chart for a page, with the style of all charts."""
    spec: Spec = chart.to_dict()
    spec["config"] = config(PAGE_INK, PAGE_BACKGROUND)
    return spec
