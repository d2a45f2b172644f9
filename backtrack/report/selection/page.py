"""Write the report: `report.html`, one file that loads nothing, and `figures/*.png`.

Promised: each file is either the old or the new one, never incomplete. Text from records is
escaped: in markup by the template's autoescape, in scripts by `tojson`.
Not promised: that page and pictures show the same selection if the machine dies between them.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from backtrack.errors import RunError
from backtrack.report import vega
from backtrack.report.rendering import render
from backtrack.report.selection import answers, facts, tables
from backtrack.run.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backtrack.records import CheckpointEntry, Measurement
    from backtrack.records.answers import Comparison
    from backtrack.records.selection import Selection
    from backtrack.records.sweep import Sweep
    from backtrack.report.geometry.section import Geometry

SCRIPTS = ("rule.js", "page.js", "answers.js")

MAX_ITEMS = 240
"""Compared items in the file, so that it can be sent."""


def write_report(  # noqa: PLR0913  # the last three are parts that a page may lack
    run_path: Path,
    selection: Selection,
    measurements: Sequence[Measurement],
    entries: Sequence[CheckpointEntry],
    sweep: Sweep | None = None,
    geometry: Geometry | None = None,
    compared: Comparison | None = None,
) -> Path:
    """Draw a selection into its run's directory and return the page's path.

    Args:
        run_path: The run's directory, which the page's commands name.
        selection: The selection.
        measurements: The run's measurements, counted on the page.
        entries: The trajectory's checkpoints, counted on the page.
        sweep: The rule's answers at other weights and bounds; without it the page shows only the
            selection and has no slider.
        geometry: The run's last diagnosis, if there is one.
        compared: Items won and lost with what the model said, if that was kept; a caller lists
            `MAX_ITEMS` of them.

    Raises:
        RunError: The directory cannot be written to.
    """
    from backtrack.report.selection import charts
    from backtrack.report.selection.drawing import Drawing
    from backtrack.report.selection.payload import payload

    drawing = Drawing(selection)
    context = _context(selection) | {
        "facts": facts.facts(selection, measurements, entries),
        "figures": facts.figures(selection),
        "charts": facts.captions(selection),
        "small": [
            (f"score_{i}", drawing.axis(f"score_{i}")[0])
            for i in drawing.selection.apart_from_role
        ],
        "is_live": sweep is not None,
        "bounds": tables.bounds(selection),
        "geometry": geometry,
        "answers": answers.section(compared, selection),
        "payload": payload(drawing, sweep, run_path, geometry.specs if geometry else {}),
        "export": f"backtrack export {shlex.quote(str(run_path))} DIR",
    }
    pictures = {"plane": charts.plane_spec(drawing), "alpha": charts.alpha_spec(drawing)}
    files = {f"figures/{name}.png": vega.picture(spec) for name, spec in pictures.items()}
    files["report.html"] = render("page.html", context, SCRIPTS, vega.javascript())
    try:
        for name, content in files.items():
            (run_path / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(run_path / name, content)
    except OSError as error:
        raise RunError(
            f"The report of {run_path} could not be written: {error}. "
            "Free disk space or fix the permissions there, then run `backtrack report` again."
        ) from error
    return run_path / "report.html"


def _context(selection: Selection) -> dict[str, Any]:
    return {
        "run": selection.run,
        "verdict": selection.verdict,
        "notes": selection.notes,
        "command": selection.command,
        "created": selection.created,
        "level": f"{selection.level:.0%}",
        "optimism": facts.optimism(selection),
        "report": tables.report(selection),
        "differences": tables.differences(selection),
        "baselines": tables.baselines(selection),
        "ranges": tables.ranges(selection),
        "candidates": tables.candidates(selection),
        "objectives": tables.objectives(selection),
        "yardstick": facts.YARDSTICK,
    }
