"""The command `search`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backtrack import terminal
from backtrack.cli.app import app
from backtrack.cli.options import (
    BaseOption,
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LimitOption,
    QuietOption,
    RayOption,
    RecipeOption,
    RunArgument,
    SeedOption,
    SetOption,
    TrustOption,
    VerboseOption,
    WorkersOption,
    as_settings,
)
from backtrack.cli.targets import cluster_of, measuring, open_run, print_json
from backtrack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.selection.search.budget import Plan


@app.command()
def search(
    run: RunArgument = None,
    base: BaseOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    batch_size: BatchSizeOption = None,
    seed: SeedOption = None,
    limit: LimitOption = None,
    trials: Annotated[int | None, typer.Option(min=0, help="Points the sampler adds.")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=NUMBER",
            help="Limit of the cost: items=5000, tokens=2e6 or minutes=30; repeatable.",
        ),
    ] = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    storage: Annotated[
        str | None,
        typer.Option(
            envvar="BACKTRACK_STORAGE",
            help="Database of the Optuna study, for a dashboard: postgresql://...",
        ),
    ] = None,
    *,
    may_run_code: TrustOption = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Measure points along the path; earlier measurements are reused."""
    limits = parse_budget(budget)
    settings = as_settings(overrides, device=device, batch_size=batch_size, seed=seed, limit=limit)
    opened = open_run(run, base, recipe, settings, dtype=dtype, may_run_code=may_run_code)
    with terminal.progress("measuring", is_quiet=is_quiet or is_json) as report:
        from backtrack.selection.search.driver import search as search_run

        found = search_run(
            opened,
            trials=trials,
            budget=limits,
            storage=storage,
            cluster=cluster_of(opened, workers, ray),
            on_plan=None if is_quiet or is_json else _show_plan,
            on_progress=measuring(report),
        )
    points = list(dict.fromkeys(str(measurement.point) for measurement in found))
    num_items = sum(len(measurement.item_ids) for measurement in found)
    if is_json:
        print_json({"run": str(opened.path), "points": points, "items": num_items})
        return
    terminal.out.print(
        f"{opened.path}: {len(points)} points measured, {num_items:,} items scored. Choose one: "
        f"backtrack select {shlex.quote(str(opened.path))} --weight 0.5",
        soft_wrap=True,
    )


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
