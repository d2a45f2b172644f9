"""The commands `export`, `report` and `runs`."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backtrack import terminal
from backtrack.cli.app import app
from backtrack.cli.options import (
    BaseOption,
    ExportForm,
    JsonOption,
    QuietOption,
    RunArgument,
    SetOption,
    TrustOption,
    VerboseOption,
)
from backtrack.cli.targets import (
    command_line,
    draw_report,
    named_points,
    open_run,
    print_json,
    write_export,
)
from backtrack.errors import RunError, UsageError
from backtrack.formatting import command
from backtrack.point import Point, find_point

if TYPE_CHECKING:
    from backtrack.records.selection import Selection
    from backtrack.run.directory import Run


@app.command()
def export(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN DIR", help="The run, if not the newest, and a new folder."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder, instead of DIR.")
    ] = None,
    point: Annotated[
        str | None,
        typer.Option(
            help="base, chosen, final, STEP:ALPHA[:PROFILE] such as 400:0.35, or ALPHA of the "
            "last step; default: the chosen point."
        ),
    ] = None,
    form: Annotated[
        ExportForm | None,
        typer.Option(
            "--as", help="What to write; default: an adapter where one is exact, else a model."
        ),
    ] = None,
    front: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Instead: write K points of the front as adapters of one base, to be served.",
        ),
    ] = None,
    base: BaseOption = None,
    overrides: SetOption = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Also upload it to the Hub as NAME or OWNER/NAME."),
    ] = None,
    *,
    is_private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Of a new repository; default: the Hub's."),
    ] = None,
    may_run_code: TrustOption = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Write a point as an adapter or model that PEFT or transformers loads."""
    name, folder = _run_and_folder(arguments or [], output)
    opened = open_run(name, base, None, overrides, may_run_code=may_run_code)
    if front is not None:
        if point or form or push:
            raise UsageError("--front writes adapters of several points: leave out the others.")
        _export_front(opened, front, folder, is_json=is_json, is_quiet=is_quiet)
        return
    where = find_point(point, named_points(opened)) if point else _chosen(opened)
    if push:
        from backtrack.exporter.push import require_login

        require_login()
    is_silent = is_quiet or is_json
    written = write_export(opened, where, folder, form, is_quiet=is_silent)
    address = _push(written.folder, push, is_private=is_private) if push else None
    if is_json:
        found = {"folder": str(written.folder), "form": written.form, "point": str(where)}
        print_json(found | ({"address": address} if address else {}))
        return
    text = f"{written.folder}: {where} as {written.form}"
    if written.measured:
        text += ", measured again in this form"
    terminal.print_line(str(written.folder) if is_quiet else text + ".")
    if address:
        terminal.print_line(address if is_quiet else f"pushed to {address}")


def _run_and_folder(arguments: list[str], output: Path | None) -> tuple[str | None, Path]:
    """What `[RUN] DIR`, or `[RUN] -o DIR`, names."""
    given = [*arguments, *([] if output is None else [str(output)])]
    if not 1 <= len(given) <= 2:
        raise UsageError(
            f"export takes a run, if not the newest, and a folder: `export [RUN] DIR` or "
            f"`export [RUN] -o DIR`; got {len(given)} names."
        )
    return given[0] if len(given) == 2 else None, Path(given[-1])


def _export_front(
    run: Run, num_points: int, folder: Path, *, is_json: bool, is_quiet: bool
) -> None:
    with terminal.progress("exporting", is_quiet=is_quiet or is_json) as report:
        from backtrack.exporter import export_front

        stages = count()
        found = export_front(
            run,
            num_points,
            folder,
            command=command_line(),
            on_stage=lambda what: report(next(stages), num_points, what),
        )
    if is_json:
        print_json(found.model_dump(mode="json"))
        return
    for each in found.points:
        name = str(folder / each.folder)
        mark = ", the choice" if each.is_chosen else ""
        terminal.print_line(name if is_quiet else f"{name}: {each.point}{mark}")
    if not is_quiet:
        start = f"sh {folder / 'serve-vllm.sh'}" if not found.unserved else "see its README.md"
        terminal.print_line(f"serve    {start}")


def _push(folder: Path, name: str, *, is_private: bool | None) -> str:
    from backtrack.exporter import push as push_folder

    return push_folder(folder, name, is_private=is_private)


@app.command()
def report(
    run: RunArgument = None,
    *,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Redraw the report from saved measurements; needs no model."""
    opened = open_run(run, None, None, may_run_code=None)
    selection = opened.selection()
    if selection is None:
        raise UsageError(
            f"{opened.path} has no selection yet. Make one: {command('select', opened.path)}."
        )
    page = draw_report(opened, selection)
    replaced = opened.replaced_since(selection)
    if replaced and not is_quiet:
        steps = ", ".join(map(str, replaced))
        terminal.print_note(
            f"The checkpoint of step {steps} was replaced after this selection, which shows the "
            "scores of the earlier one. Choose again: `backtrack select`."
        )
    if is_json:
        print_json({"report": str(page)})
        return
    terminal.print_line(str(page))
    if opened.sweep() is None and not is_quiet:
        select = command("select", opened.path)
        terminal.print_note(f"It has no weight slider: {select} computes the data.")


@app.command()
def runs(
    folder: Annotated[
        Path, typer.Argument(help="Folder of the runs; with --settings, a run.")
    ] = Path("runs"),
    *,
    has_settings: Annotated[
        bool, typer.Option("--settings", help="List what a run was measured under, newest first.")
    ] = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """List runs and their state, newest first."""
    from backtrack.records.places import EMBEDDED

    if has_settings:
        _list_settings(folder, is_json=is_json)
        return
    from backtrack.run.finding import find_runs

    paths = find_runs(folder)
    if is_quiet:
        for path in paths:
            terminal.print_line(path.name)
        return
    rows = [_summary(path) for path in paths]
    if is_json:
        print_json(rows)
        return
    if not rows:
        terminal.print_line(f"no runs in {folder.resolve()}; make one with `backtrack demo`")
        return
    headings = ("run", "state", "method", "base", "steps", "points", "chosen")
    cells = [[str(row[name]) for name in headings] for row in rows]
    for row in cells:
        row[3] = row[3] if row[3].startswith(EMBEDDED) else Path(row[3]).name or row[3]
    terminal.print_rows(headings, cells)
    for summary in rows:
        if summary["state"] == "damaged":
            terminal.print_line(f"{summary['run']} is damaged: {summary['reason']}")


def _list_settings(path: Path, *, is_json: bool) -> None:
    """List the settings of a run, with what each has measured of the checkpoints as they are."""
    from backtrack.run.directory import Run
    from backtrack.run.finding import find_run, is_run
    from backtrack.selection.measure.settings import summaries

    run = Run.open(path if is_run(path) else find_run(None if path == Path("runs") else str(path)))
    rows = summaries(run)
    if is_json:
        print_json(rows)
        return
    choosing = run.choosing
    changes = ", ".join(choosing.changes) if choosing else ""
    terminal.print_line(f"{run.path} is chosen by {changes or 'the recipe of its training'}.")
    headings = ["created", "objectives", "items", "form", "points", "scores", "changed"]
    headings += ["replaced"] if any(row["replaced"] for row in rows) else []
    cells = [[str(row[name]) for name in headings] for row in rows]
    for row in cells:
        row[0] = row[0][:16].replace("T", " ")  # to the minute
        first, *others = row[1].split(", ")
        row[1] = f"{first} and {len(others)} more" if len(others) > 1 else row[1]
    terminal.print_rows(headings, cells)


def _chosen(run: Run) -> Point:
    selection = run.selection()
    if selection is None:
        raise UsageError(
            f"{run.path} has no chosen point yet. Choose one with {command('select', run.path)}, "
            "or give --point."
        )
    return selection.chosen


def _summary(path: Path) -> dict[str, Any]:
    """The row of one run. A run that cannot be read is `damaged`, with the reason."""
    from backtrack.records.places import shown
    from backtrack.run.directory import Run

    try:
        run = Run.open(path)
        selection = run.selection()
        points = {m.point for m in run.measurements() if m.split == "selection"}
        state = _state(run, selection, has_points=bool(points))
    except RunError as error:
        found = dict.fromkeys(("method", "base", "steps", "points", "chosen"), "")
        return {"run": path.name, "state": "damaged", **found, "reason": str(error)}
    return {
        "run": path.name,
        "state": state,
        "method": run.manifest.method.kind,
        "base": shown(run.base.model),
        "steps": len(run.steps),
        "points": len(points),
        "chosen": str(selection.chosen) if selection else "",
    }


def _state(run: Run, selection: Selection | None, *, has_points: bool) -> str:
    """The state of a run, which tells the command to run next."""
    if run.is_searched:
        return "searching"
    if not run.steps:
        return "empty"
    if selection is not None:
        return "outdated" if run.replaced_since(selection) else "selected"
    return "measured" if has_points else "adopted" if run.manifest.source else "trained"
