"""One picture of an arena: the path of every entrant on the plane of target and general score.

arena-frontiers   each entrant's path from the base to its final checkpoint, its choice marked
arena-forgetting  geometry of the final checkpoints against what they forgot
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from backtrack.report import vega
from backtrack.report.arena.rows import PATH, TRAINING, ways
from backtrack.report.geometry.figures import forgetting_rows, scatter
from backtrack.report.vega import FINAL_COLOUR, TRAINING_COLOUR
from backtrack.run.directory import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backtrack.records.arena import Arena

Spec = dict[str, Any]
Row = dict[str, Any]
SIZE = (720.0, 460.0)
PANEL = (190.0, 150.0)


def write_arena_figures(folder: Path, arena: Arena) -> tuple[Path, ...]:
    """Draw what there is to draw into `figures/` of an arena's directory; gives the files."""
    (folder / "figures").mkdir(exist_ok=True)
    written = []
    for name, spec in specs(arena).items():
        written.append(folder / "figures" / f"arena-{name}.png")
        write_atomically(written[-1], vega.picture(spec))
    return tuple(written)


def specs(arena: Arena) -> dict[str, Spec]:
    """Each drawing by name, as Vega-Lite; those without anything to show are left out."""
    found: dict[str, Spec] = {}
    if arena.axes and any(entrant.points for entrant in arena.entrants):
        found["frontiers"] = vega.finished(_frontiers(arena))
        found["ways"] = vega.finished(_ways(arena))
    rows = forgetting_rows(arena.forgetting)
    if len(arena.forgetting) > 1 and rows:
        found["forgetting"] = vega.finished(scatter(rows, has_names=True))
    return found


def _frontiers(arena: Arena) -> Any:
    """The paths of all entrants; of several seeds the first is drawn strong."""
    rows = [row for row in ways(arena) if row["way"] == PATH]
    names = list(dict.fromkeys(row["entrant"] for row in rows))
    place = {
        "x": _role(arena, "target"),
        "y": _role(arena, "general"),
        "color": alt.Color(
            "entrant:N",
            title=None,
            scale=alt.Scale(domain=names, scheme="category20"),
            legend=alt.Legend(labelLimit=0),
        ),
        "opacity": alt.condition("datum.is_first", alt.value(0.85), alt.value(0.3)),
        "tooltip": ["run:N", "point:N", "target:Q", "general:Q"],
    }
    marks = [
        _chart(rows).mark_line(strokeWidth=1.8).encode(order="place:Q", detail="run:N", **place),
        _chart(rows).mark_point(filled=True, size=18).encode(**place),
        _chart([row for row in rows if row["is_final"]])
        .mark_point(shape="square", size=70, strokeWidth=2)
        .encode(**place),
        _chart([row for row in rows if row["is_chosen"]])
        .mark_point(shape="cross", filled=True, size=150)
        .encode(**place),
    ]
    title = "Paths from the base to each final checkpoint (square); the choice is a cross"
    return alt.layer(*marks).properties(
        width=SIZE[0], height=SIZE[1], title=alt.Title(title, anchor="start", fontSize=12)
    )


def _ways(arena: Arena) -> Any:
    """A panel an entrant: the way training went, and the way back; of several seeds the first."""
    rows = [row for row in ways(arena) if row["is_first"]]
    encoded = (
        _chart(rows)
        .mark_line(point={"filled": True, "size": 22}, strokeWidth=1.6)
        .encode(
            x=_role(arena, "target"),
            y=_role(arena, "general"),
            order="place:Q",
            color=alt.Color(
                "way:N",
                title=None,
                scale=alt.Scale(domain=[TRAINING, PATH], range=[TRAINING_COLOUR, FINAL_COLOUR]),
                legend=alt.Legend(labelLimit=0),
            ),
        )
        .properties(width=PANEL[0], height=PANEL[1])
    )
    names = list(dict.fromkeys(row["entrant"] for row in rows))
    return encoded.facet(facet=alt.Facet("entrant:N", title=None, sort=names), columns=4)


def _role(arena: Arena, role: Any) -> Any:
    axis = arena.axes[role]
    is_reversed = axis.direction == "minimize"
    title = f"{role.capitalize()} ({axis.unit}{', less is better' if is_reversed else ''})"
    channel = alt.X if role == "target" else alt.Y
    return channel(f"{role}:Q", title=title, scale=alt.Scale(zero=False, reverse=is_reversed))


def _chart(rows: Sequence[Row]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=list(rows)))
