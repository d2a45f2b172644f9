"""An arena's page: every entrant on one plane, to be switched on and off, and sortable tables.

One file that loads nothing: `arena.html` in the arena's directory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backtrack.errors import RunError
from backtrack.formatting import NO_NUMBER
from backtrack.records import ROLES
from backtrack.report import vega, wording
from backtrack.report.arena import figures as arena
from backtrack.report.arena import rows as arena_rows
from backtrack.report.geometry.rows import correlation_table
from backtrack.report.rendering import render
from backtrack.run.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.records import Interval
    from backtrack.records.arena import Arena, Entrant
    from backtrack.records.selection import ReportRow

CAPTIONS = {
    "frontiers": "Each entrant's path from the base to its final checkpoint (square), on the "
    "selection items; the choice is a cross. Of several seeds the first is drawn strong.",
    "paths": "Each entrant's checkpoints in training, and its path along alpha.",
    "forgetting": "Geometry of the final checkpoints against the general ability they lost.",
}


def write_arena_page(folder: Path, found: Arena) -> Path:
    """Draw an arena into its directory and return the page's path.

    Args:
        folder: The arena's directory.
        found: The arena's record.

    Raises:
        RunError: The directory cannot be written to.
    """
    specs = arena.specs(found)
    context = {
        "arena": found,
        "names": list(dict.fromkeys(entrant.name for entrant in found.entrants)),
        "charts": [(name, CAPTIONS[name]) for name in specs],
        "ranking": arena_rows.ranking(found),
        "runs": [_run_row(found, entrant, folder) for entrant in found.entrants],
        "units": [found.axes[role].unit if found.axes else "" for role in ROLES],
        "correlations": correlation_table(found.correlations),
        "payload": {"charts": {name: [spec] for name, spec in specs.items()}},
    }
    page = folder / "arena.html"
    try:
        write_atomically(page, render("arena.html", context, ["arena.js"], vega.javascript()))
    except OSError as error:
        raise RunError(
            f"{page} could not be written: {error}. Free disk space or fix the permissions there."
        ) from error
    return page


def _run_row(found: Arena, entrant: Entrant, folder: Path) -> dict[str, Any]:
    """A run in the table: its choice, the gain over the final checkpoint, a link to its page."""
    report = folder / entrant.run / "report.html"
    final = entrant.report.get("final")
    chosen = entrant.report.get("chosen")
    to_final = next((d.utility for d in entrant.differences if d.to == "final"), None)
    return {
        "entrant": entrant.name,
        "label": entrant.label,
        "href": f"{entrant.run}/report.html" if report.is_file() else "",
        "state": entrant.state,
        "failure": entrant.failure or "",
        "point": str(entrant.chosen) if entrant.chosen else NO_NUMBER,
        "scores": [*_scores(found, final), *_scores(found, chosen)],
        "gain": _interval(to_final),
        "comparison": wording.comparison(to_final) if to_final else "",
    }


def _scores(found: Arena, row: ReportRow | None) -> list[str]:
    if row is None:
        return [NO_NUMBER] * len(ROLES)
    return [wording.interval(getattr(row, role), found.axes[role].unit) for role in ROLES]


def _interval(value: Interval | None) -> str:
    return NO_NUMBER if value is None else wording.interval(value, "points", is_signed=True)
