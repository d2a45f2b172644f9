"""The command line: parse, call one library function, print. Nothing imports this module.

Heavy libraries are imported inside the commands, so `--help` answers at once. Exit codes: 0 done,
2 wrong use, 1 failed, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from backtrack import terminal
from backtrack.errors import BacktrackError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.point import Point
    from backtrack.recipe import Recipe
    from backtrack.records import Constraints, Selection
    from backtrack.run.directory import Run

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
_INTERRUPTED = (
    "interrupted. What was saved and measured is kept: the same command goes on from there "
    "(train with --resume)."
)

app = typer.Typer(
    name="backtrack",
    help="Find how far along a fine-tuning path to stand, without training again.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="Recipes that come with the package.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")


class ExportForm(StrEnum):
    """What an export is."""

    ADAPTER = "adapter"
    MERGED = "merged"


RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        help="A run, or a folder of checkpoints to adopt; the newest run by default.",
        show_default=False,
    ),
]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="Base of an adopted folder that does not name it.")
]
RecipeOption = Annotated[
    Path | None,
    typer.Option("--recipe", help="Objectives and settings for a run that has none, or others."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; repeatable."),
]


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Folder for the demo's run.")] = Path("runs"),
    seed: Annotated[int, typer.Option(help="Of training, split and search.")] = 0,
    *,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
) -> None:
    """Run the whole job on an embedded tiny model: train, search, select, export, report."""
    from backtrack.demo import run_demo

    shown = run_demo(folder, seed=seed, is_quiet=is_quiet or is_json)
    if is_json:
        _print_json(shown.selection.model_dump(mode="json"))
        return
    terminal.print_selection(shown.selection)
    terminal.out.print()
    for name, place in {"report": shown.report, "adapter": shown.export.folder}.items():
        terminal.out.print(f"{name:<8} {place}", markup=False, soft_wrap=True)
    terminal.out.print()
    for line in shown.next_commands:
        terminal.out.print(line, markup=False, soft_wrap=True)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe; see `backtrack recipes list`.")],
    overrides: SetOption = None,
    *,
    is_resumed: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
) -> None:
    """Train a recipe, keeping a dense trajectory."""
    from backtrack.recipe import load_recipe

    path = _recipe_path(recipe)
    # `accelerate launch` and torchrun number the processes; one of them speaks.
    is_main = os.environ.get("RANK", "0") == "0"
    with terminal.progress("training", is_quiet=is_quiet or is_json or not is_main) as report:
        from backtrack.train.check import library_faults
        from backtrack.train.trainer import train as train_recipe

        loaded = load_recipe(path, overrides or (), checks=[library_faults])
        run = train_recipe(
            loaded,
            recipe_text=path.read_text(encoding="utf-8"),
            resume=is_resumed,
            on_progress=lambda p: report(p.done, p.total, _loss(p.loss)),
        )
    if not is_main:
        return
    if is_json:
        _print_json({"run": str(run.path), "steps": list(run.steps)})
        return
    terminal.out.print(
        f"{run.path}: {len(run.steps)} checkpoints, last step {run.final.step}. "
        f"Choose a point: backtrack select {shlex.quote(str(run.path))}",
        markup=False,
        soft_wrap=True,
    )


@app.command()
def adopt(
    source: Annotated[Path, typer.Argument(help="Folder a Trainer wrote, an adapter or a model.")],
    base: BaseOption = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    recipe: RecipeOption = None,
    initial: Annotated[
        Path | None,
        typer.Option(help="Adapter saved before the first step, where PiSSA and its kin need it."),
    ] = None,
    *,
    is_json: JsonOption = False,
) -> None:
    """Take over a run that others wrote: by reference, copying nothing."""
    run = _adopt(source, base, name, recipe, initial)
    if is_json:
        _print_json({"run": str(run.path), "steps": list(run.steps), "base": run.base.model})
        return
    terminal.out.print(
        f"{run.path}: {len(run.steps)} checkpoints from {source}, base {run.base.model}.",
        markup=False,
        soft_wrap=True,
    )


@app.command()
def search(
    run: RunArgument = None,
    base: BaseOption = None,
    recipe: RecipeOption = None,
    trials: Annotated[int | None, typer.Option(help="Points the sampler adds.")] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=NUMBER",
            help="What it may cost: items=5000, tokens=2e6 or minutes=30; repeatable.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes on this machine, one a GPU.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Database that workers on several machines share: postgresql://..."),
    ] = None,
    *,
    is_worker: Annotated[
        bool, typer.Option("--worker", help="Share the run with other workers.", hidden=True)
    ] = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
) -> None:
    """Measure points along the path; what is measured stays measured."""
    limits = _budget(budget)
    opened = _open(run, base, recipe)
    count = workers or (opened.recipe.search.workers if opened.recipe else 1)
    with terminal.progress("measuring", is_quiet=is_quiet or is_json) as report:
        if count > 1 and not is_worker:
            found = _search_together(opened, count, (trials, budget, storage), report)
        else:
            from backtrack.selection.searching import search as search_run

            found = search_run(
                opened,
                trials=trials,
                budget=limits,
                storage=storage,
                is_shared=is_worker,
                on_plan=None if is_quiet or is_json else _show_plan,
                on_progress=_measuring(report),
            )
    points = list(dict.fromkeys(str(measurement.point) for measurement in found))
    num_items = sum(len(measurement.item_ids) for measurement in found)
    if is_json:
        _print_json({"run": str(opened.path), "points": points, "items": num_items})
        return
    terminal.out.print(
        f"{opened.path}: {len(points)} points measured, {num_items:,} items scored. Choose one: "
        f"backtrack select {shlex.quote(str(opened.path))} --weight 0.5",
        markup=False,
        soft_wrap=True,
    )


@app.command()
def select(
    run: RunArgument = None,
    weights: Annotated[
        list[float] | None,
        typer.Option(
            "--weight", help="Of the target in the utility, from 0 to 1; repeat for a table."
        ),
    ] = None,
    max_general_drop: Annotated[
        float | None, typer.Option(help="Points the general score may fall below the base's.")
    ] = None,
    min_target: Annotated[
        float | None, typer.Option(help="Lowest target score, in points.")
    ] = None,
    keep_gain: Annotated[
        float | None, typer.Option(help="Share of the final checkpoint's gain to keep.")
    ] = None,
    max_drop: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="How much an objective may lose; repeatable."),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Worst score of an objective; repeatable."),
    ] = None,
    export: Annotated[Path | None, typer.Option(help="Write the chosen point here.")] = None,
    form: Annotated[ExportForm | None, typer.Option("--as", help="What to write.")] = None,
    base: BaseOption = None,
    recipe: RecipeOption = None,
    *,
    is_knee: Annotated[
        bool, typer.Option("--knee", help="Choose the knee of the front, whatever its weight.")
    ] = False,
    is_swept: Annotated[
        bool, typer.Option("--sweep", help="List the chosen points from weight 0 to 1.")
    ] = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
) -> None:
    """Choose the point that serves a weighting; searches first where nothing is measured."""
    if is_knee and weights:
        raise UsageError("--knee takes its weight from the front: give it or --weight, not both.")
    bounds = _constraints(max_general_drop, min_target, keep_gain, _bounds(max_drop, limit))
    opened = _open(run, base, recipe)
    with terminal.progress("measuring", is_quiet=is_quiet or is_json) as report:
        choices = _choose(opened, weights or [], bounds, report, is_knee=is_knee)
    choice = choices[0]
    page = _draw(opened, choice.selection)
    if export is not None:
        _export(opened, choice.point, export, form)
    if is_json:
        dumped = [each.selection.model_dump(mode="json") for each in choices]
        _print_json(dumped[0] if len(dumped) == 1 else dumped)
        return
    terminal.print_candidates(choice.selection)
    terminal.print_selection(choice.selection)
    if len(choices) > 1:
        terminal.print_weights([each.selection for each in choices])
    if is_swept:
        terminal.print_ranges(choice.selection)
    terminal.out.print()
    terminal.out.print(f"report   {page}", markup=False, soft_wrap=True)
    if export is not None:
        terminal.out.print(f"export   {export}", markup=False, soft_wrap=True)
    else:
        where = shlex.quote(str(opened.path))
        terminal.out.print(f"next     backtrack export {where} DIR", markup=False, soft_wrap=True)


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
    opened = _open(name, base, None)
    where = _parse_point(point) if point else _chosen(opened)
    written = _export(opened, where, Path(arguments[-1]), form)
    if is_json:
        _print_json({"folder": str(written.folder), "form": written.form, "point": str(where)})
        return
    text = f"{written.folder}: {where} as {written.form}"
    if written.measured:
        text += ", measured again in this form"
    terminal.out.print(text + ".", markup=False, soft_wrap=True)


@app.command()
def report(run: RunArgument = None, *, is_json: JsonOption = False) -> None:
    """Draw the page again from what was measured; needs no model."""
    opened = _open(run, None, None)
    selection = opened.selection()
    if selection is None:
        raise UsageError(f"{opened.path} has no selection yet. Make one: `backtrack select`.")
    page = _draw(opened, selection)
    if is_json:
        _print_json({"report": str(page)})
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
        _print_json(rows)
        return
    if not rows:
        terminal.out.print(
            f"no runs in {folder.resolve()}; make one with `backtrack demo`", markup=False
        )
        return
    headings = list(rows[0])
    terminal.print_rows(headings, [[str(row[name]) for name in headings] for row in rows])


@recipes_app.command("list")
def list_recipes(*, is_json: JsonOption = False) -> None:
    """Name the recipes that come with the package."""
    from backtrack.recipe import packaged_recipes

    rows = [[path.stem, _purpose(path)] for path in packaged_recipes()]
    if is_json:
        _print_json([{"name": name, "purpose": purpose} for name, purpose in rows])
        return
    terminal.print_rows(["recipe", "purpose"], rows)


@recipes_app.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(help="A recipe's name or file.")],
    *,
    is_json: JsonOption = False,
) -> None:
    """Print a recipe."""
    text = _recipe_path(Path(name)).read_text(encoding="utf-8")
    if is_json:
        _print_json({"name": name, "text": text})
        return
    sys.stdout.write(text)


@recipes_app.command("check")
def check_recipe(
    recipe: Annotated[Path, typer.Argument(help="A recipe's name or file.")],
    overrides: SetOption = None,
    *,
    is_json: JsonOption = False,
) -> None:
    """List every mistake of a recipe at once."""
    from backtrack.recipe import load_recipe
    from backtrack.train.check import library_faults

    path = _recipe_path(recipe)
    loaded = load_recipe(path, overrides or (), checks=[library_faults])
    if is_json:
        _print_json(loaded.model_dump(mode="json"))
        return
    terminal.out.print(f"{path}: no mistakes.", markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    _be_quiet()
    try:
        code = app(args=list(arguments) if arguments is not None else None, standalone_mode=False)
    except BacktrackError as error:
        terminal.print_error(str(error))
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        terminal.print_error(_usage(error))
        sys.exit(EXIT_USAGE)
    except typer.Abort:
        code = EXIT_INTERRUPTED
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except OSError as error:
        terminal.print_error(f"{error.filename or 'the disk'}: {error.strerror or error}.")
        sys.exit(1)
    if code == EXIT_INTERRUPTED:
        terminal.print_note(_INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Any) -> str:
    """What is wrong with the words of a command, and where its help is."""
    path = error.ctx.command_path if getattr(error, "ctx", None) else "backtrack"
    return f"{error.format_message()} See `{path} --help`."


def _be_quiet() -> None:
    """Libraries' own bars and advice stay off unless the user's environment asks for them."""
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")


def _open(name: str | None, base: str | None, recipe: Path | None) -> Run:
    from backtrack.run.adopt import is_run
    from backtrack.run.directory import Run, find_run

    path = find_run(name)
    if not is_run(path):
        return _adopt(path, base, None, recipe)
    run = Run.open(path)
    if recipe is not None:
        found = _recipe_path(recipe)
        run.write_recipe(_load(found), found.read_text(encoding="utf-8"))
    return run


def _adopt(
    source: Path,
    base: str | None,
    name: str | None,
    recipe: Path | None,
    initial: Path | None = None,
) -> Run:
    from backtrack.run.adopt import adopt as adopt_folder

    loaded = _load(_recipe_path(recipe)) if recipe is not None else None
    return adopt_folder(
        source,
        base=base,
        name=name,
        recipe=loaded,
        initial=initial,
        on_skip=lambda sentence: terminal.print_note(f"left out: {sentence}"),
    )


def _load(path: Path) -> Recipe:
    from backtrack.recipe import load_recipe

    return load_recipe(path)


def _recipe_path(name: Path) -> Path:
    from backtrack.recipe import find_recipe

    return find_recipe(name)


def _choose(
    run: Run,
    weights: Sequence[float],
    bounds: Constraints | None,
    report: terminal.Report,
    *,
    is_knee: bool,
) -> list[Any]:
    """The choice, or one for each weight where there are several."""
    from backtrack.selection.selecting import select as select_point
    from backtrack.selection.selecting import select_each

    common: dict[str, Any] = {
        "constraints": bounds,
        "on_progress": _measuring(report),
        "command": _command_line(),
    }
    if len(weights) > 1:
        return select_each(run, weights, **common)
    weight = weights[0] if weights else None
    return [select_point(run, weight=weight, is_knee=is_knee, **common)]


def _search_together(
    run: Run,
    count: int,
    options: tuple[int | None, list[str] | None, str | None],
    report: terminal.Report,
) -> list[Any]:
    """Search by several processes, each with the same options."""
    from backtrack.selection.workers import search_together

    trials, budget, storage = options
    arguments = ["--trials", str(trials)] if trials is not None else []
    arguments += [part for text in budget or [] for part in ("--budget", text)]
    arguments += ["--storage", storage] if storage else []

    def show(scored: int, running: int) -> None:
        report(scored, scored, f"items scored, {running} workers")

    return search_together(run, count, arguments, on_progress=show, on_note=terminal.print_note)


def _budget(texts: Sequence[str] | None) -> Any:
    """The budget given on the command line; none if there is none, so that the recipe's holds."""
    if not texts:
        return None
    from pydantic import ValidationError

    from backtrack.recipe import BudgetSection

    try:
        asked = {kind: float(number) for kind, _, number in (t.partition("=") for t in texts)}
        return BudgetSection.model_validate(asked)
    except (ValueError, ValidationError) as error:
        raise UsageError(
            f"--budget {' '.join(texts)}: write items=5000, tokens=2e6 or minutes=30."
        ) from error


def _bounds(max_drop: Sequence[str] | None, limit: Sequence[str] | None) -> dict[str, Any]:
    """Bounds on single objectives by name."""
    found: dict[str, Any] = {}
    for option, texts in (("max_drop", max_drop or ()), ("limit", limit or ())):
        for text in texts:
            name, equals, number = text.rpartition("=")
            try:
                found.setdefault(name, {})[option] = float(number)
            except ValueError:
                equals = ""
            if not equals or not name:
                raise UsageError(
                    f"--{option.replace('_', '-')} {text!r}: write NAME=NUMBER, such as nq=2."
                )
    return found


def _constraints(
    max_general_drop: float | None,
    min_target: float | None,
    keep_gain: float | None,
    objectives: dict[str, Any],
) -> Constraints | None:
    """The bounds given on the command line; none if there are none, so that the recipe's hold."""
    given = {
        "max_general_drop": max_general_drop,
        "min_target": min_target,
        "keep_gain": keep_gain,
    }
    if not objectives and all(value is None for value in given.values()):
        return None
    from pydantic import ValidationError

    from backtrack.records import Constraints

    try:
        return Constraints.model_validate({**given, "objectives": objectives})
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0] if first["loc"][0] != "objectives" else first["loc"][-1])
        raise UsageError(
            f"--{option.replace('_', '-')}: {first['msg'].lower()}, got {first['input']}."
        ) from error


def _parse_point(text: str) -> Point:
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


def _export(run: Run, point: Point, folder: Path, form: ExportForm | None) -> Any:
    from backtrack.exporter import export as export_point

    return export_point(
        run, point, folder, form=form.value if form else None, command=_command_line()
    )


def _draw(run: Run, selection: Selection) -> Path:
    from backtrack.report.page import write_report

    return write_report(run.path, selection, run.measurements(), run.entries())


def _show_plan(plan: Any) -> None:
    terminal.print_plan(
        plan.num_points, plan.least_items, plan.most_items, plan.done_items, plan.seconds
    )


def _measuring(report: terminal.Report) -> Any:
    return lambda p: report(p.done, p.total, f"{p.point}, {p.objective}")


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"loss {loss:.4g}"


def _command_line() -> str:
    return shlex.join(["backtrack", *sys.argv[1:]])


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


def _purpose(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip()


def _print_json(values: object) -> None:
    sys.stdout.write(json.dumps(values, indent=2) + "\n")
