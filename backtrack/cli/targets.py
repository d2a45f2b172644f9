"""Helpers of several commands: open the run or recipe they work on, write and print results."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from backtrack import terminal
from backtrack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backtrack.cli.options import ExportForm, LoadDtype
    from backtrack.point import Point
    from backtrack.recipe import ClusterSection, Recipe
    from backtrack.records.selection import Selection
    from backtrack.run.directory import Run


_EXPORT_STAGES = 5
"""Loading, placing, writing, loading back, and measuring if the form differs."""


def open_run(
    name: str | None,
    base: str | None,
    recipe: Path | None,
    overrides: Sequence[str] | None = None,
    *,
    dtype: LoadDtype | None = None,
    may_run_code: bool | None = False,
) -> Run:
    """Open a run by name or folder, or the newest; other trainers' folders are adopted.

    Args:
        name: The run; None is the newest.
        base: Base of a folder that is to be adopted; a run's is checked, and its place recorded.
        recipe: What it is measured and chosen by from now on; None leaves that as it is.
        overrides: Keys of that recipe to set, as `key.inner=value`.
        dtype: Dtype that the weights of such a folder are loaded in; a run has its own.
        may_run_code: Whether the user allows the code that a run from elsewhere asks for; None
            if nothing of the run will be measured, only drawn.

    Raises:
        UsageError: The run asks for code that the user has not allowed, or has another dtype.
    """
    from backtrack.run.adoption.refreshing import refresh
    from backtrack.run.directory import Run
    from backtrack.run.finding import find_run, is_run

    path = find_run(name)
    if is_run(path) and base is not None:
        terminal.print_note(record_base(Run.open(path), base, None))
    run = Run.open(path) if is_run(path) else adopt_folder(path, base, None, recipe, dtype=dtype)
    _require_dtype(run, dtype)
    refresh(run)
    set_choosing(run, recipe, overrides or ())
    if may_run_code is not None:
        require_trust(run, may_run_code=may_run_code)
    return run


def _require_dtype(run: Run, dtype: LoadDtype | None) -> None:
    if dtype not in {None, run.base.dtype}:
        raise UsageError(
            f"{run.path} has dtype {run.base.dtype}, for which its scores hold: leave --dtype "
            f"out, or adopt its checkpoints with --dtype {dtype} under another name."
        )


def named_points(run: Run) -> dict[str, Point]:
    """The points of a run that have names, by them."""
    from backtrack.point import Point

    selection = run.selection()
    named = {"base": Point.base(), "final": run.final}
    return named if selection is None else {**named, "chosen": selection.chosen}


def require_trust(run: Run, *, may_run_code: bool) -> None:
    """Refuse a run from elsewhere that asks for code, unless the user allows it now or did before.

    Raises:
        UsageError: Names the code.
    """
    from backtrack.run.trust import allow, require_allowed

    if may_run_code:
        allow(run.manifest, run.code)
    require_allowed(run.manifest, run.code, run.path)


def set_choosing(run: Run, recipe: Path | None, overrides: Sequence[str]) -> None:
    """Measure and choose a run by a recipe and changes to it, from the next result on."""
    from backtrack.recipe import ChoosingRecipe
    from backtrack.run.trust import allow, code_of_recipe
    from backtrack.selection.measure.choosing import choose_by

    choosing = run.choosing
    if recipe is not None:
        own = load_named(recipe_path(recipe))
        allow(run.manifest, code_of_recipe(own))
        choosing = ChoosingRecipe(recipe=own, changes=(f"--recipe {recipe}",))
    if overrides and choosing is None:
        raise UsageError(f"{run.path} has no recipe for --set to change. Give one with --recipe.")
    if choosing is not None and (recipe is not None or overrides):
        choosing = choosing.changed(overrides)
        choose_by(run, choosing.recipe, choosing.changes)


def adopt_folder(
    source: Path,
    base: str | None,
    name: str | None,
    recipe: Path | None,
    initial: Path | None = None,
    *,
    dtype: LoadDtype | None = None,
    is_quiet: bool = False,
) -> Run:
    """Adopt a folder, and print what was skipped and what a reader should know."""
    from backtrack.run.adopt import adopt as adopt_folder

    loaded = load_named(recipe_path(recipe)) if recipe is not None else None
    return adopt_folder(
        source,
        base=base,
        name=name,
        recipe=loaded,
        initial=initial,
        dtype=dtype.value if dtype else None,
        on_skip=lambda text: None if is_quiet else terminal.print_note(f"skipped: {text}"),
        on_note=lambda text: None if is_quiet else terminal.print_note(text),
    )


def record_base(run: Run, base: str, revision: str | None) -> str:
    """Record where the base of a run is now; return a sentence that says so."""
    from backtrack.records.places import shown
    from backtrack.run.adoption.rebasing import rebase

    how = (
        "all tensors are those it was trained on"
        if rebase(run, base, revision)
        else ("not compared, since the run had recorded no fingerprint of its base; it has now")
    )
    return f"{run.path}: the base is {shown(run.base.model)} ({how})."


def load_named(path: Path) -> Recipe:
    """Load a recipe file."""
    from backtrack.recipe import load_recipe

    return load_recipe(path)


def recipe_path(name: Path) -> Path:
    """The file of a recipe given by path or name."""
    from backtrack.recipe import find_recipe

    return find_recipe(name)


def draw_report(run: Run, selection: Selection) -> Path:
    """Write `report.html` from the run's records."""
    from backtrack.report.geometry.section import read_geometry
    from backtrack.report.selection.page import MAX_ITEMS, write_report
    from backtrack.selection.measure.comparing import compare_ends

    return write_report(
        run.path,
        selection,
        run.measurements(),
        run.entries(),
        run.sweep(),
        read_geometry(run.path),
        compare_ends(run, selection, MAX_ITEMS),
    )


def write_export(
    run: Run, point: Point, folder: Path, form: ExportForm | None, *, is_quiet: bool
) -> Any:
    """Export a point to a folder with a progress bar."""
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


def cluster_of(run: Run, workers: int | None, address: str | None) -> ClusterSection:
    """The section on actors of what measures a run, with what the command line changes."""
    from backtrack.recipe import ClusterSection

    section = run.choosing.recipe.cluster if run.choosing else ClusterSection()
    return as_cluster(section, workers, address)


def as_cluster(
    section: ClusterSection, workers: int | None, address: str | None
) -> ClusterSection:
    """A section on actors, with what the command line changes."""
    given = {"actors": workers, "address": address}
    return section.model_copy(update={k: v for k, v in given.items() if v is not None})


def measuring(report: terminal.Report) -> Any:
    """A progress callback for a search."""
    return lambda p: report(p.done, p.total, ", ".join(filter(None, (str(p.point), p.objective))))


def command_line() -> str:
    """The command line as typed."""
    return shlex.join(["backtrack", *sys.argv[1:]])


def print_json(values: object) -> None:
    """Print values as JSON to standard output."""
    sys.stdout.write(json.dumps(values, indent=2) + "\n")
