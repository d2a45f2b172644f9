"""The command `search`."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backtrack import terminal
from backtrack.cli.app import app
from backtrack.cli.options import (
    BaseOption,
    BatchSizeOption,
    DeviceOption,
    JsonOption,
    LimitOption,
    QuietOption,
    RecipeOption,
    RunArgument,
    SeedOption,
    SetOption,
    TrustOption,
    VerboseOption,
    as_settings,
)
from backtrack.cli.targets import measuring, open_run, print_json
from backtrack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backtrack.run.directory import Run
    from backtrack.selection.measure.progress import Progress
    from backtrack.selection.search.budget import Plan


@app.command()
def search(
    run: RunArgument = None,
    base: BaseOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    device: DeviceOption = None,
    batch_size: BatchSizeOption = None,
    seed: SeedOption = None,
    limit: LimitOption = None,
    trials: Annotated[int | None, typer.Option(help="Points the sampler adds.")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=NUMBER",
            help="Limit of the cost: items=5000, tokens=2e6 or minutes=30; repeatable.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes on this machine, one per GPU.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            envvar="BACKTRACK_STORAGE",
            help="Database that workers on several machines share: postgresql://...",
        ),
    ] = None,
    *,
    is_worker: Annotated[
        bool, typer.Option("--worker", help="Share the run with other workers.", hidden=True)
    ] = False,
    may_run_code: TrustOption = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Measure points along the path; earlier measurements are reused."""
    limits = parse_budget(budget)
    settings = as_settings(overrides, device=device, batch_size=batch_size, seed=seed, limit=limit)
    opened = open_run(run, base, recipe, settings, may_run_code=may_run_code)
    count = workers or (opened.recipe.search.workers if opened.recipe else 1)
    with terminal.progress("measuring", is_quiet=is_quiet or is_json) as report:
        if count > 1 and not is_worker:
            on_plan = None if is_quiet or is_json else _show_plan
            found = _search_together(opened, count, (trials, budget, storage), report, on_plan)
        else:
            from backtrack.selection.search.driver import search as search_run

            found = search_run(
                opened,
                trials=trials,
                budget=limits,
                storage=storage,
                is_shared=is_worker,
                on_plan=_plan_shown(is_quiet=is_quiet or is_json, is_worker=is_worker),
                on_progress=_tell if is_worker else measuring(report),
            )
    points = list(dict.fromkeys(str(measurement.point) for measurement in found))
    num_items = sum(len(measurement.item_ids) for measurement in found)
    if is_worker:
        return
    if is_json:
        print_json({"run": str(opened.path), "points": points, "items": num_items})
        return
    terminal.out.print(
        f"{opened.path}: {len(points)} points measured, {num_items:,} items scored. Choose one: "
        f"backtrack select {shlex.quote(str(opened.path))} --weight 0.5",
        soft_wrap=True,
    )


def _search_together(
    run: Run,
    count: int,
    options: tuple[int | None, list[str] | None, str | None],
    report: terminal.Report,
    on_plan: Callable[[Plan], None] | None,
) -> list[Any]:
    """Search with several processes that have the same options."""
    from backtrack.selection.search.workers import search_together

    trials, budget, storage = options
    arguments = ["--trials", str(trials)] if trials is not None else []
    arguments += [part for text in budget or [] for part in ("--budget", text)]

    def show(scored: int, total: int, running: int) -> None:
        report(scored, total, f"items, by {running} workers")

    return search_together(
        run,
        count,
        arguments,
        storage=storage,
        on_plan=on_plan,
        on_progress=show,
        on_note=terminal.print_note,
    )


def _plan_shown(*, is_quiet: bool, is_worker: bool) -> Callable[[Plan], None] | None:
    if is_worker:
        return lambda plan: _say({"plan": dataclasses.asdict(plan)})
    return None if is_quiet else _show_plan


def _tell(progress: Progress) -> None:
    """Report a worker's progress to the process that started it."""
    _say({"left": progress.total - progress.done})


def _say(values: dict[str, Any]) -> None:
    """Write a line to the real standard output, from which a progress bar redirects `print`."""
    os.write(1, (json.dumps(values) + "\n").encode())


def parse_budget(texts: Sequence[str] | None) -> Any:
    """The budget of the command line; None if not given, so that the recipe's is used."""
    if not texts:
        return None
    from pydantic import ValidationError

    from backtrack.recipe import BudgetSection

    try:
        limits = {kind: float(number) for kind, _, number in (t.partition("=") for t in texts)}
        return BudgetSection.model_validate(limits)
    except (ValueError, ValidationError) as error:
        raise UsageError(
            f"--budget {' '.join(texts)}: write items=5000, tokens=2e6 or minutes=30."
        ) from error


def _show_plan(plan: Plan) -> None:
    terminal.print_plan(
        plan.num_points, plan.least_items, plan.most_items, plan.recorded_items, plan.seconds
    )
