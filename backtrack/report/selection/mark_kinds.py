"""Kinds of marks in the charts of a selection: name, colour, shape and size.

A kind is told by its shape as well as by its colour. Colours are from the palette of Okabe and
Ito, moved to middle lightness where they would be lost on white or on black.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backtrack.report.vega import FINAL_COLOUR, TRAINING_COLOUR

if TYPE_CHECKING:
    from collections.abc import Container

    from backtrack.records.selection import Selection

FRONT = "front"
TIED = "tied with the best"
CHOSEN = "chosen, selection items"
INTERVAL = "chosen, report items"
BASE = "base"
FINAL = "final"
TRAINING = "training path, alpha 1"
OTHER_CURVES = "other alpha paths"
OTHER = "other points"

BASE_COLOUR = "#6f7782"
OTHER_CURVE_COLOUR = "#009e73"
FRONT_COLOUR = "#8d949e"
TIED_COLOUR = "#b0599c"
CHOSEN_COLOUR = "#d9480f"

DISC = "circle"
DASHES = "M-1.4,-0.2H-0.3V0.2H-1.4ZM0.3,-0.2H1.4V0.2H0.3Z"
PLUS = "M-0.13,-1H0.13V-0.13H1V0.13H0.13V1H-0.13V0.13H-1V-0.13H-0.13Z"
RING = (
    "M-1,0A1,1,0,1,1,1,0A1,1,0,1,1,-1,0ZM-0.78,0A0.78,0.78,0,1,0,0.78,0A0.78,0.78,0,1,0,-0.78,0Z"
)
STAR = (
    "M0,-1L0.28,-0.31L1,-0.31L0.42,0.13L0.64,0.85"
    "L0,0.42L-0.64,0.85L-0.42,0.13L-1,-0.31L-0.28,-0.31Z"
)


@dataclass(frozen=True)
class MarkKind:
    """A kind of mark.

    Attributes:
        name: Its text in the legend.
        colour: Hexadecimal RGB.
        shape: A Vega symbol, or an SVG path in a square from -1 to 1.
        size: Area in square pixels.
    """

    name: str
    colour: str
    shape: str
    size: int


def final_path_kind(selection: Selection) -> str:
    """Name of the kind for points on the path to the final checkpoint."""
    final = selection.final
    end = "" if final.profile == "uniform" else f", {final.profile}"
    return f"alpha path to step {final.step}{end}"


def all_kinds(selection: Selection) -> tuple[MarkKind, ...]:
    """All kinds, those drawn last at the end."""
    return (
        MarkKind(BASE, BASE_COLOUR, "square", 130),
        MarkKind(TRAINING, TRAINING_COLOUR, DISC, 78),
        MarkKind(final_path_kind(selection), FINAL_COLOUR, "triangle-up", 78),
        MarkKind(OTHER_CURVES, OTHER_CURVE_COLOUR, "diamond", 78),
        MarkKind(OTHER, FRONT_COLOUR, "cross", 48),
        MarkKind(FRONT, FRONT_COLOUR, DASHES, 60),
        MarkKind(TIED, TIED_COLOUR, RING, 210),
        MarkKind(INTERVAL, CHOSEN_COLOUR, PLUS, 110),
        MarkKind(CHOSEN, CHOSEN_COLOUR, STAR, 460),
    )


def legend_kinds(selection: Selection, names: Container[str]) -> tuple[MarkKind, ...]:
    """Kinds with one of the names, in the order of the legend: the choice comes first."""
    kinds = (kind for kind in all_kinds(selection) if kind.name in names)
    return tuple(sorted(kinds, key=lambda kind: kind.name != CHOSEN))
