"""The command `select`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backtrack import terminal
from backtrack.cli.app import app
from backtrack.cli.options import (
    BaseOption,
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    ExportForm,
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
from backtrack.cli.targets import (
    cluster_of,
    command_line,
    draw_report,
    measuring,
    open_run,
    print_json,
    write_export,
)
from backtrack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.recipe import ClusterSection, Recipe
    from backtrack.records.selection import Constraints, Selection
    from backtrack.run.directory import Run


@app.command()
def select(
    run: RunArgument = None,
    weights: Annotated[
        list[float] | None,
        typer.Option(
            "--weight",
            "-w",
            metavar="NUMBER",
            min=0,
            max=1,
            help="Weight of the target, from 0 to 1; repeat it for a table.",
        ),
    ] = None,
    max_general_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Largest drop of the general score, in points."),
    ] = None,
    min_target: Annotated[
        float | None, typer.Option(help="Lowest target score, in points.")
    ] = None,
    keep_gain: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Smallest share of the final checkpoint's gain."),
    ] = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Largest drop of an objective; repeatable."),
    ] = None,
    worst: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Worst score of an objective; repeatable."),
    ] = None,
    bound_confidence: Annotated[
        float | None,
        typer.Option(
            min=0.5, max=1, help="Confidence with which bounds must be shown to be met; 0.95."
        ),
    ] = None,
    export: Annotated[Path | None, typer.Option(help="Export the chosen point here.")] = None,
    form: Annotated[ExportForm | None, typer.Option("--as", help="What to write.")] = None,
    base: BaseOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    batch_size: BatchSizeOption = None,
    seed: SeedOption = None,
    limit: LimitOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    *,
    is_knee: Annotated[
        bool,
        typer.Option("--knee", help="Choose the knee of the Pareto front."),
    ] = False,
    is_cautious: Annotated[
        bool | None,
        typer.Option(
            "--cautious",
            help="Choose the base wherever the items cannot tell it from the best point.",
            show_default=False,
        ),
    ] = None,
    is_swept: Annotated[
        bool, typer.Option("--sweep", help="List the chosen points for weights from 0 to 1.")
    ] = False,
    is_as_is: Annotated[
        bool,
        typer.Option("--as-is", help="Choose from what is measured; do not finish the search."),
    ] = False,
    may_run_code: TrustOption = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Choose the best point at a weight; a search that was begun is finished first."""
    if is_knee and weights:
        raise UsageError("--knee takes its weight from the front: give it or --weight, not both.")
    if export is not None and len(weights or ()) > 1:
        raise UsageError("--export writes one choice: give one --weight, or leave it out.")
    by_name = parse_bounds(max_drop, worst)
    given = parse_constraints(max_general_drop, min_target, keep_gain, by_name, bound_confidence)
    settings = as_settings(overrides, device=device, batch_size=batch_size, seed=seed, limit=limit)
    opened = open_run(run, base, recipe, settings, dtype=dtype, may_run_code=may_run_code)
    bounds = add_to_recipe(given, opened.choosing.recipe if opened.choosing else None)
    with terminal.progress("measuring", is_quiet=is_quiet or is_json) as report:
        choices = _choose(
            opened,
            weights or [],
            bounds,
            report,
            cluster_of(opened, workers, ray),
            is_knee=is_knee,
            is_cautious=is_cautious,
            is_as_is=is_as_is,
        )
    choice = choices[0]
    page = draw_report(opened, choice.selection)
    if export is not None:
        write_export(opened, choice.point, export, form, is_quiet=is_quiet or is_json)
    for each in choices:
        _log(opened, each.selection)
    if is_json:
        dumped = [each.selection.model_dump(mode="json") for each in choices]
        print_json(dumped[0] if len(dumped) == 1 else dumped)
        return
    terminal.print_candidates(choice.selection)
    terminal.print_selection(choice.selection)
    if len(choices) > 1:
        terminal.print_weights([each.selection for each in choices])
    if is_swept:
        terminal.print_ranges(choice.selection)
    terminal.out.print()
    terminal.out.print(f"report   {page}", soft_wrap=True)
    if export is not None:
        terminal.out.print(f"export   {export}", soft_wrap=True)
    else:
        where = shlex.quote(str(opened.path))
        terminal.out.print(f"next     backtrack export {where} DIR", soft_wrap=True)


def _choose(
    run: Run,
    weights: Sequence[float],
    bounds: Constraints | None,
    report: terminal.Report,
    cluster: ClusterSection,
    *,
    is_knee: bool,
    is_cautious: bool | None,
    is_as_is: bool,
) -> list[Any]:
    """The choice, or one for each of several weights."""
    from backtrack.selection.choice.select import select as select_point
    from backtrack.selection.choice.select import select_each

    common: dict[str, Any] = {
        "constraints": bounds,
        "is_cautious": is_cautious,
        "cluster": cluster,
        "is_to_finish": not is_as_is,
        "on_progress": measuring(report),
        "command": command_line(),
    }
    if len(weights) > 1:
        return select_each(run, weights, **common)
    weight = weights[0] if weights else None
    return [select_point(run, weight=weight, is_knee=is_knee, **common)]


def _log(run: Run, selection: Selection) -> None:
    from backtrack.train.trainers.front_log import log_front

    for note in log_front(run, selection):
        terminal.print_note(note)


def parse_bounds(max_drop: Sequence[str] | None, worst: Sequence[str] | None) -> dict[str, Any]:
    """Parse bounds on single objectives, by name."""
    found: dict[str, Any] = {}
    for option, texts in (("max_drop", max_drop or ()), ("worst", worst or ())):
        for text in texts:
            name, equals, number = text.rpartition("=")
            if option in found.get(name, {}):
                raise UsageError(f"--{option.replace('_', '-')} is given twice for {name}.")
            try:
                found.setdefault(name, {})[option] = float(number)
            except ValueError:
                equals = ""
            if not equals or not name:
                raise UsageError(
                    f"--{option.replace('_', '-')} {text!r}: write NAME=NUMBER, such as nq=2."
                )
    return found


def parse_constraints(
    max_general_drop: float | None,
    min_target: float | None,
    keep_gain: float | None,
    objectives: dict[str, Any],
    bound_confidence: float | None = None,
) -> Constraints | None:
    """The bounds of the command line; None if not given, so that the recipe's are used."""
    given = {
        "max_general_drop": max_general_drop,
        "min_target": min_target,
        "keep_gain": keep_gain,
        "bound_confidence": bound_confidence,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if not objectives and not given:
        return None
    from pydantic import ValidationError

    from backtrack.records.selection import Constraints

    try:
        return Constraints.model_validate({**given, "objectives": objectives})
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0] if first["loc"][0] != "objectives" else first["loc"][-1])
        raise UsageError(
            f"--{option.replace('_', '-')}: {first['msg'].lower()}, got {first['input']}."
        ) from error


def add_to_recipe(given: Constraints | None, recipe: Recipe | None) -> Constraints | None:
    """Add the command line's bounds to the recipe's, and say which of those they replace."""
    if given is None or recipe is None:
        return given
    kept = recipe.select.model_dump(include=set(type(given).model_fields), exclude_unset=True)
    added = given.model_dump(exclude_unset=True)
    by_name = {**kept.pop("objectives", {})}
    for name, bounds in added.pop("objectives", {}).items():
        before = by_name.get(name, {})
        _say_replaced({f"{k} of {name}": v for k, v in before.items()}, bounds, f" of {name}")
        by_name[name] = {**before, **bounds}
    _say_replaced(kept, added)
    return type(given).model_validate({**kept, **added, "objectives": by_name})


def _say_replaced(kept: Mapping[str, Any], added: Mapping[str, Any], suffix: str = "") -> None:
    for name, value in added.items():
        before = kept.get(f"{name}{suffix}")
        if before is not None and before != value:
            terminal.print_note(
                f"{name}{suffix} {value:g} on the command line replaces the recipe's {before:g}."
            )
