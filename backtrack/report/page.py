"""Write the report: `report.html`, one file that loads nothing, and `figures/*.png`.

Promised: each file is the old or the new one, never a part. Text that comes from records is
escaped where it stands: in markup by the template's autoescape, in scripts by `tojson`.
Not promised: that page and pictures show one selection when the machine dies in between.
"""

from __future__ import annotations

import shlex
from importlib import resources
from typing import TYPE_CHECKING, Any

from backtrack.errors import RunError
from backtrack.report import facts, tables
from backtrack.run.directory import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from markupsafe import Markup

    from backtrack.records import CheckpointEntry, Measurement, Selection


def write_report(
    run_path: Path,
    selection: Selection,
    measurements: Sequence[Measurement],
    entries: Sequence[CheckpointEntry],
) -> Path:
    """Draw a selection into its run's directory; gives the page's path.

    Raises:
        RunError: The directory cannot be written to.
    """
    from backtrack.report import charts

    specs = {
        "plane": [charts.plane_spec(selection, layout) for layout in charts.LAYOUTS],
        "alpha": [charts.alpha_spec(selection, layout) for layout in charts.LAYOUTS],
    }
    context = _context(selection) | {
        "facts": facts.facts(selection, measurements, entries),
        "charts": [_chart(selection, name, found) for name, found in specs.items()],
        "export": f"backtrack export {shlex.quote(str(run_path))} DIR",
        "vega": charts.javascript(),
    }
    files = {f"figures/{name}.png": charts.picture(found[0]) for name, found in specs.items()}
    files["report.html"] = _render(context).encode()
    try:
        for name, content in files.items():
            (run_path / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(run_path / name, content)
    except OSError as error:
        raise RunError(
            f"The report of {run_path} could not be written: {error}. "
            "Make room or mend the permissions there and ask for the report again."
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
        "figures": facts.figures(selection),
        "optimism": facts.optimism(selection),
        "report": tables.report(selection),
        "differences": tables.differences(selection),
        "baselines": tables.baselines(selection),
        "ranges": tables.ranges(selection),
        "candidates": tables.candidates(selection),
        "objectives": tables.objectives(selection),
        "yardstick": facts.YARDSTICK,
    }


def _chart(selection: Selection, name: str, specs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    title, caption = facts.captions(selection)[name]
    return {"id": name, "title": title, "caption": caption, "specs": specs}


def _render(context: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("page.html")).render(
        context
        | {
            "style": _trusted(_asset("page.css")),
            "script": _trusted(_asset("page.js")),
            "vega": _trusted(context["vega"]),
        }
    )


def _trusted(code: str) -> Markup:
    """Code of the package's own or of Vega, to stand unescaped in its element."""
    from markupsafe import Markup

    return Markup(code.replace("</script", "<\\/script").replace("<!--", "<\\!--"))


def _asset(name: str) -> str:
    return (resources.files("backtrack") / "assets" / "report" / name).read_text("utf-8")
