"""Charts of an arena: the paths of its entrants on the plane of target and general score.

arena-frontiers   each entrant's path from the base to its final checkpoint, its choice marked
arena-paths       a panel per entrant: its checkpoints in training, and its path along alpha
arena-forgetting  geometry of the final checkpoints against what they forgot
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from backtrack.report import vega
from backtrack.report.arena.rows import ALPHA, TRAINING, path_rows
from backtrack.report.geometry.figures import forgetting_rows, scatter
from backtrack.report.vega import FINAL_COLOUR, TRAINING_COLOUR
from backtrack.run.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backtrack.records.arena import Arena

Spec = dict[str, Any]
Row = dict[str, Any]
SIZE = (720.0, 460.0)
PANEL = (190.0, 150.0)


def write_arena_figures(folder: Path, arena: Arena) -> tuple[Path, ...]:
    """Draw an arena's charts into `figures/` of its directory and return the files."""
    (folder / "figures").mkdir(exist_ok=True)
    written = []
    for name, spec in specs(arena).items():
        written.append(folder / "figures" / f"arena-{name}.png")
        write_atomically(written[-1], vega.picture(spec))
    return tuple(written)


def specs(arena: Arena) -> dict[str, Spec]:
    """Vega-Lite specifications by name; charts without data are left out."""
    charts: dict[str, Spec] = {}
    if arena.axes and any(entrant.points for entrant in arena.entrants):
        charts["frontiers"] = vega.finished(_frontiers(arena))
        charts["paths"] = vega.finished(_paths(arena))
    rows = forgetting_rows(arena.forgetting)
    if len(arena.forgetting) > 1 and rows:
        charts["forgetting"] = vega.finished(scatter(rows, has_names=True))
    return charts


def _frontiers(arena: Arena) -> Any:
    """The paths of all entrants; of several seeds the first is drawn opaque."""
    rows = [row for row in path_rows(arena) if row["path"] == ALPHA]
    names = list(dict.fromkeys(row["entrant"] for row in rows))
    encoding = {
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
        _chart(rows)
        .mark_line(strokeWidth=1.8)
        .encode(order="order:Q", detail="run:N", **encoding),
        _chart(rows).mark_point(filled=True, size=18).encode(**encoding),
        _chart([row for row in rows if row["is_final"]])
        .mark_point(shape="square", size=70, strokeWidth=2)
        .encode(**encoding),
        _chart([row for row in rows if row["is_chosen"]])
        .mark_point(shape="cross", filled=True, size=150)
        .encode(**encoding),
    ]
    title = "Paths from the base to each final checkpoint (square); the choice is a cross"
    return alt.layer(*marks).properties(
        width=SIZE[0], height=SIZE[1], title=alt.Title(title, anchor="start", fontSize=12)
    )


def _paths(arena: Arena) -> Any:
    """A panel per entrant: checkpoints in training and the path along alpha, of its first seed."""
    rows = [row for row in path_rows(arena) if row["is_first"]]
    encoded = (
        _chart(rows)
        .mark_line(point={"filled": True, "size": 22}, strokeWidth=1.6)
        .encode(
            x=_role(arena, "target"),
            y=_role(arena, "general"),
            order="order:Q",
            color=alt.Color(
                "path:N",
                title=None,
                scale=alt.Scale(domain=[TRAINING, ALPHA], range=[TRAINING_COLOUR, FINAL_COLOUR]),
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
