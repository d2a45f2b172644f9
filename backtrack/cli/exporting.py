"""Commands that hand out what was chosen: `export`, `report`, `runs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backtrack import terminal
from backtrack.cli.app import app
from backtrack.cli.opening import draw_report, open_run, print_json, write_export
from backtrack.cli.options import BaseOption, ExportForm, JsonOption, RunArgument
from backtrack.errors import UsageError

if TYPE_CHECKING:
    from backtrack.point import Point
    from backtrack.run.directory import Run


@app.command()
def export(
    arguments: Annotated[
        list[str], typer.Argument(metavar="[RUN] DIR", help="The run, and a new folder.")
    ],
    point: Annotated[
        str | None,
        typer.Option(help="STEP:ALPHA, such as 400:0.35; the chosen point by default."),
    ] = None,
    form: Annotated[ExportForm | None, typer.Option("--as", help="What to write.")] = None,
    base: BaseOption = None,
    *,
    is_json: JsonOption = False,
) -> None:
    """Write a point as an adapter or model that PEFT or transformers loads."""
    if len(arguments) > 2:
        raise UsageError(f"export takes a run and a folder, got {len(arguments)} arguments.")
    name = arguments[0] if len(arguments) == 2 else None
    opened = open_run(name, base, None)
    where = parse_point(point) if point else _chosen(opened)
    written = write_export(opened, where, Path(arguments[-1]), form)
    if is_json:
        print_json({"folder": str(written.folder), "form": written.form, "point": str(where)})
        return
    text = f"{written.folder}: {where} as {written.form}"
    if written.measured:
        text += ", measured again in this form"
    terminal.out.print(text + ".", markup=False, soft_wrap=True)


@app.command()
def report(run: RunArgument = None, *, is_json: JsonOption = False) -> None:
    """Draw the page again from what was measured; needs no model."""
    opened = open_run(run, None, None)
    selection = opened.selection()
    if selection is None:
        raise UsageError(f"{opened.path} has no selection yet. Make one: `backtrack select`.")
    page = draw_report(opened, selection)
    if is_json:
        print_json({"report": str(page)})
        return
    terminal.out.print(str(page), markup=False, soft_wrap=True)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Where the runs are.")] = Path("runs"),
    *,
    is_json: JsonOption = False,
) -> None:
    """List runs with their state."""
    from backtrack.run.directory import Run, find_runs

    rows = [_state(Run.open(path)) for path in find_runs(folder)]
    if is_json:
        print_json(rows)
        return
    if not rows:
        terminal.out.print(
            f"no runs in {folder.resolve()}; make one with `backtrack demo`", markup=False
        )
        return
    headings = list(rows[0])
    terminal.print_rows(headings, [[str(row[name]) for name in headings] for row in rows])


def parse_point(text: str) -> Point:
    """The point of `STEP:ALPHA`."""
    from pydantic import ValidationError

    from backtrack.point import Point

    step, _, alpha = text.partition(":")
    try:
        return Point(step=int(step), alpha=float(alpha or "1"))
    except (ValueError, ValidationError) as error:
        raise UsageError(
            f"--point {text!r} is no point. Write STEP:ALPHA, such as 400:0.35."
        ) from error


def _chosen(run: Run) -> Point:
    selection = run.selection()
    if selection is None:
        raise UsageError(
            f"{run.path} has no chosen point yet. Choose one with `backtrack select`, or give "
            "--point."
        )
    return selection.chosen


def _state(run: Run) -> dict[str, Any]:
    selection = run.selection()
    return {
        "run": run.path.name,
        "method": run.manifest.method.kind,
        "base": run.base.model,
        "checkpoints": len(run.steps),
        "measured": len({str(m.point) for m in run.measurements()}),
        "chosen": str(selection.chosen) if selection else "",
    }
