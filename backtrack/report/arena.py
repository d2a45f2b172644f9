"""One picture of an arena: the path of every entrant on the plane of target and general score.

arena-frontiers   each entrant's path from the base to its final checkpoint, its choice marked
arena-forgetting  geometry of the final checkpoints against what they forgot
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from backtrack.report import charts
from backtrack.report.arena_rows import frontiers, on_path
from backtrack.report.geometry import finished, forgetting_rows, scatter
from backtrack.run.directory import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backtrack.arena_records import Arena

Spec = dict[str, Any]
Row = dict[str, Any]
SIZE = (720.0, 460.0)


def write_arena_figures(folder: Path, arena: Arena) -> tuple[Path, ...]:
    """Draw what there is to draw into `figures/` of an arena's directory; gives the files."""
    (folder / "figures").mkdir(exist_ok=True)
    written = []
    for name, spec in specs(arena).items():
        written.append(folder / "figures" / f"arena-{name}.png")
        write_atomically(written[-1], charts.picture(spec))
    return tuple(written)


def specs(arena: Arena) -> dict[str, Spec]:
    """Each drawing by name, as Vega-Lite; those without anything to show are left out."""
    found: dict[str, Spec] = {}
    if arena.axes and frontiers(arena):
        found["frontiers"] = finished(_frontiers(arena))
    rows = forgetting_rows(arena.forgetting)
    if len(arena.forgetting) > 1 and rows:
        found["forgetting"] = finished(scatter(rows))
    return found


def _frontiers(arena: Arena) -> Any:
    measured = [entrant for entrant in arena.entrants if entrant.state == "measured"]
    names = list(dict.fromkeys(entrant.name for entrant in measured))
    paths = [
        row | {"entrant": entrant.name, "run": entrant.label}
        for entrant in measured
        for row in on_path(entrant)
    ]
    points = frontiers(arena)
    colour = alt.Color(
        "entrant:N",
        title=None,
        scale=alt.Scale(domain=names, scheme="category20"),
        legend=alt.Legend(labelLimit=0),
    )
    place = {
        "x": _role(arena, "target"),
        "y": _role(arena, "general"),
        "color": colour,
        "tooltip": ["entrant:N", "point:N", "target:Q", "general:Q"],
    }
    lines = _chart(paths).mark_line(strokeWidth=1.8, opacity=0.8)
    dots = _chart([r for r in points if r["way"] == "path"]).mark_point(filled=True, size=18)
    finals = _chart([r for r in points if r["is_final"]]).mark_point(
        shape="square", size=70, strokeWidth=2
    )
    chosen = _chart([r for r in points if r["is_chosen"]]).mark_point(
        shape="cross", filled=True, size=150
    )
    return alt.layer(
        lines.encode(order="alpha:Q", detail="run:N", **place),
        dots.encode(**place),
        finals.encode(**place),
        chosen.encode(**place),
    ).properties(
        width=SIZE[0],
        height=SIZE[1],
        title=alt.Title(
            "Paths from the base to each final checkpoint (square); the choice is a cross",
            anchor="start",
            fontSize=12,
        ),
    )


def _role(arena: Arena, role: Any) -> Any:
    axis = arena.axes[role]
    is_reversed = axis.direction == "minimize"
    title = f"{role.capitalize()} ({axis.unit}{', less is better' if is_reversed else ''})"
    channel = alt.X if role == "target" else alt.Y
    return channel(f"{role}:Q", title=title, scale=alt.Scale(zero=False, reverse=is_reversed))


def _chart(rows: Sequence[Row]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=list(rows)))
