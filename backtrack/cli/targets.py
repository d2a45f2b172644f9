"""What a command works on: a run by name, a recipe by name; and what it prints as JSON."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from backtrack import terminal

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.cli.options import ExportForm
    from backtrack.point import Point
    from backtrack.recipe import Recipe
    from backtrack.records.selection import Selection
    from backtrack.run.directory import Run


_EXPORT_STAGES = 5
"""Loading, placing, writing and loading back; and measuring, where the form is another."""


def open_run(name: str | None, base: str | None, recipe: Path | None) -> Run:
    """The run of that name, folder or age; a folder that is not ours is adopted."""
    from backtrack.run.adopt import is_run
    from backtrack.run.directory import Run, find_run

    path = find_run(name)
    if not is_run(path):
        return adopt_folder(path, base, None, recipe)
    run = Run.open(path)
    if recipe is not None:
        found = recipe_path(recipe)
        run.write_recipe(load_named(found), found.read_text(encoding="utf-8"))
    return run


def adopt_folder(
    source: Path,
    base: str | None,
    name: str | None,
    recipe: Path | None,
    initial: Path | None = None,
    *,
    is_quiet: bool = False,
) -> Run:
    """Take over a folder; what is left out is said."""
    from backtrack.run.adopt import adopt as adopt_folder

    loaded = load_named(recipe_path(recipe)) if recipe is not None else None
    return adopt_folder(
        source,
        base=base,
        name=name,
        recipe=loaded,
        initial=initial,
        on_skip=lambda text: None if is_quiet else terminal.print_note(f"left out: {text}"),
    )


def load_named(path: Path) -> Recipe:
    """The recipe of a file."""
    from backtrack.recipe import load_recipe

    return load_recipe(path)


def recipe_path(name: Path) -> Path:
    """The file of a recipe by path or name."""
    from backtrack.recipe import find_recipe

    return find_recipe(name)


def draw_report(run: Run, selection: Selection) -> Path:
    """Write the page from records."""
    from backtrack.report.geometry.section import read_geometry
    from backtrack.report.selection.page import write_report

    return write_report(
        run.path,
        selection,
        run.measurements(),
        run.entries(),
        run.sweep(),
        read_geometry(run.path),
    )


def write_export(
    run: Run, point: Point, folder: Path, form: ExportForm | None, *, is_quiet: bool
) -> Any:
    """Write a point to a folder, saying what is being done."""
    with terminal.progress("exporting", is_quiet=is_quiet) as report:
        from backtrack.exporter import export as export_point

        stages = iter(range(_EXPORT_STAGES))
        return export_point(
            run,
            point,
            folder,
            form=form.value if form else None,
            command=command_line(),
            on_stage=lambda what: report(next(stages), _EXPORT_STAGES, what),
        )


def measuring(report: terminal.Report) -> Any:
    """Progress of a search, for a reporter."""
    return lambda p: report(p.done, p.total, f"{p.point}, {p.objective}")


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join(["backtrack", *sys.argv[1:]])


def print_json(values: object) -> None:
    """To standard output, and nothing else."""
    sys.stdout.write(json.dumps(values, indent=2) + "\n")
