"""The command `arena`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backtrack import formatting, terminal
from backtrack.cli.app import app
from backtrack.cli.options import (
    JsonOption,
    QuietOption,
    RayOption,
    SetOption,
    TrustOption,
    VerboseOption,
    WorkersOption,
)
from backtrack.cli.targets import (
    as_cluster,
    command_line,
    draw_report,
    print_json,
    recipe_path,
    require_trust,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backtrack.arena.plan import EntrantPlan
    from backtrack.recipe.arena import ArenaRecipe
    from backtrack.records.arena import Arena


@app.command()
def arena(
    recipe: Annotated[
        Path,
        typer.Argument(help="An arena's recipe by file or name, or its directory to show again."),
    ],
    overrides: SetOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    *,
    is_retry: Annotated[bool, typer.Option("--retry", help="Retry entrants that failed.")] = False,
    is_dry: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run and what it needs.")
    ] = False,
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
        if is_dry:
            _print_plan(loaded, is_json=is_json)
            return
        loaded = replace(loaded, cluster=as_cluster(loaded.cluster, workers, ray))
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


def _print_plan(recipe: ArenaRecipe, *, is_json: bool) -> None:
    """Print what each entrant needs, and all of them one after another on one card."""
    from backtrack.arena.plan import CARD, plan_arena

    plans, notes = plan_arena(recipe)
    if is_json:
        print_json({"name": recipe.name, "entrants": [p.as_dict() for p in plans], "notes": notes})
        return
    heads = ["entrant", "cards", "steps", "train", "measure", "disk", "tokens"]
    rows = [_plan_row(plan) for plan in plans]
    terminal.out.print(f"{recipe.name}: {len(plans)} entrants", markup=False)
    terminal.print_rows(heads, rows)
    terminal.out.print(_plan_total(plans), markup=False, soft_wrap=True)
    told = f"hours are at most those of {CARD}; see `backtrack/arena/plan.py`"
    for note in [told, *notes]:
        terminal.out.print(f"- {note}", markup=False, soft_wrap=True)


def _plan_row(plan: EntrantPlan) -> list[str]:
    tokens = [t for t in (plan.train_tokens, plan.measure_tokens) if t is not None]
    cells: list[tuple[float | None, Callable[[float], str]]] = [
        (plan.num_cards, lambda n: f"{n}"),
        (plan.num_steps, lambda n: f"{n:,}"),
        (plan.train_hours, lambda h: f"{h:,.1f} h"),
        (plan.measure_hours, lambda h: f"{h:,.1f} h"),
        (plan.disk_bytes, lambda b: formatting.byte_size(int(b))),
        (sum(tokens) if tokens else None, lambda t: f"{t / 1e6:,.0f} M"),
    ]
    return [plan.label, *("not known" if v is None else write(v) for v, write in cells)]


def _plan_total(plans: Sequence[EntrantPlan]) -> str:
    """Sums over what is known."""
    cards = max((p.num_cards or 1 for p in plans), default=1)
    hours = sum((p.train_hours or 0) + (p.measure_hours or 0) for p in plans)
    disk = formatting.byte_size(sum(p.disk_bytes or 0 for p in plans))
    tokens = sum((p.train_tokens or 0) + (p.measure_tokens or 0) for p in plans)
    return (
        f"in all, as far as known: {cards} card{'s' if cards > 1 else ''} at once, {hours:,.0f} "
        f"hours on one, {disk} of disk, {tokens / 1e6:,.0f} million tokens"
    )


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
        from backtrack.recipe import read_text

        return run_arena(
            recipe,
            recipe_text=read_text(path),
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
