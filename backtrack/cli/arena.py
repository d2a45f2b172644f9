"""The command `arena`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backtrack import terminal
from backtrack.cli.app import app
from backtrack.cli.options import JsonOption, QuietOption, SetOption, TrustOption, VerboseOption
from backtrack.cli.targets import (
    command_line,
    draw_report,
    print_json,
    recipe_path,
    require_trust,
)

if TYPE_CHECKING:
    from backtrack.recipe.arena import ArenaRecipe
    from backtrack.records.arena import Arena


@app.command()
def arena(
    recipe: Annotated[
        Path,
        typer.Argument(help="An arena's recipe by file or name, or its directory to show again."),
    ],
    overrides: SetOption = None,
    *,
    is_retry: Annotated[bool, typer.Option("--retry", help="Retry entrants that failed.")] = False,
    may_run_code: TrustOption = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Train, measure and compare several methods under one rule; resumes if interrupted."""
    if recipe.is_dir():
        from backtrack.arena.driver import read_arena

        folder, found = recipe, read_arena(recipe)
    else:
        path = recipe_path(recipe)
        loaded = _load(path, overrides, may_run_code=may_run_code)
        folder = Path(loaded.output) / loaded.name
        found = _run(loaded, path, is_retry=is_retry, is_quiet=is_quiet or is_json)
    from backtrack.report.arena.figures import write_arena_figures
    from backtrack.report.arena.page import write_arena_page

    figures = write_arena_figures(folder, found)
    pages = _draw_entrants(folder, found)
    page = write_arena_page(folder, found)
    if is_json:
        print_json(found.model_dump(mode="json"))
        return
    _print(found)
    for path in figures:
        terminal.out.print(f"figure   {path}", soft_wrap=True)
    terminal.print_line(f"page     {page}")
    if pages:
        terminal.out.print(f"reports  {pages[0].parents[1]}/*/report.html")


def _draw_entrants(folder: Path, found: Arena) -> list[Path]:
    """The report of each measured entrant, redrawn if its selection is newer."""
    from backtrack.run.directory import Run

    pages = []
    for entrant in found.entrants:
        run = Run.open(folder / entrant.run) if entrant.state == "measured" else None
        selection = run.selection() if run else None
        if run is None or selection is None:
            continue
        page = run.path / "report.html"
        newest = (run.path / "selection.json").stat().st_mtime_ns
        if not page.is_file() or page.stat().st_mtime_ns < newest:
            page = draw_report(run, selection)
        pages.append(page)
    return pages


def _load(path: Path, overrides: list[str] | None, *, may_run_code: bool) -> ArenaRecipe:
    """The recipe of an arena; runs that its directory already has may use code if allowed."""
    from backtrack.recipe.arena import load_arena
    from backtrack.run.directory import Run
    from backtrack.run.finding import is_run
    from backtrack.train.trainers.check import library_faults

    loaded = load_arena(path, overrides or (), checks=[library_faults])
    folders = (Path(spec.recipe.output) / spec.label for spec in loaded.entrants)
    for folder in filter(is_run, folders):
        require_trust(Run.open(folder), may_run_code=may_run_code)
    return loaded


def _run(recipe: ArenaRecipe, path: Path, *, is_retry: bool, is_quiet: bool) -> Arena:
    with terminal.progress("arena", is_quiet=is_quiet) as report:
        from backtrack.arena.driver import run_arena

        return run_arena(
            recipe,
            recipe_text=path.read_text(encoding="utf-8"),
            retry=is_retry,
            on_progress=report,
            command=command_line(),
        )


def _print(found: Arena) -> None:
    from backtrack.report.arena import rows as arena_rows
    from backtrack.report.geometry import rows as geometry_rows

    terminal.out.print(
        f"{found.name}: base {found.base.model}, weight {found.weight:g}; 95% intervals over "
        "items the search never saw, and over seeds where there are several",
    )
    terminal.print_rows(*arena_rows.ranking(found))
    if any(each.pearson for each in found.correlations):
        terminal.print_rows(*geometry_rows.correlation_table(found.correlations))
    for note in found.notes:
        terminal.out.print(f"- {note}", style="yellow")
