"""The commands that make a run, `demo`, `train` and `adopt`, and `rebase`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backtrack import terminal
from backtrack.cli.app import app
from backtrack.cli.options import (
    BaseOption,
    DtypeOption,
    JsonOption,
    QuietOption,
    RecipeOption,
    RunArgument,
    SetOption,
    VerboseOption,
    as_settings,
    recipe_names,
)
from backtrack.cli.plan import print_plan
from backtrack.cli.targets import (
    adopt_folder,
    print_json,
    recipe_path,
    record_base,
    set_choosing,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.recipe import Recipe
    from backtrack.train.trainers.train import TrainingProgress


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Folder for the demo's run.")] = Path("runs"),
    seed: Annotated[int, typer.Option(help="Seed of training, item split and search.")] = 0,
    overrides: SetOption = None,
    *,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Run every step on an embedded tiny model: train, search, select, export, report."""
    from backtrack.demo import run_demo

    shown = run_demo(folder, seed=seed, overrides=overrides or (), is_quiet=is_quiet or is_json)
    if is_json:
        print_json(shown.selection.model_dump(mode="json"))
        return
    terminal.print_selection(shown.selection)
    terminal.out.print()
    for name, path in {"report": shown.report, "adapter": shown.export.folder}.items():
        terminal.out.print(f"{name:<8} {path}", soft_wrap=True)
    terminal.out.print()
    for line in shown.next_commands:
        terminal.out.print(line, soft_wrap=True)


@app.command()
def train(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A recipe, or - for standard input; see `backtrack recipes list`.",
            autocompletion=recipe_names,
        ),
    ],
    overrides: SetOption = None,
    dtype: DtypeOption = None,
    *,
    is_resumed: Annotated[bool, typer.Option("--resume", help="Resume the training.")] = False,
    is_dry: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run and what it needs.")
    ] = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Train a recipe and save a dense trajectory."""
    from backtrack.recipe import load_recipe, read_text

    path, settings = recipe_path(recipe), as_settings(overrides, dtype=dtype)
    if is_dry:
        _plan(path, settings, is_json=is_json)
        return
    # `accelerate launch` and torchrun set RANK; only the main process prints.
    is_main = os.environ.get("RANK", "0") == "0"
    with terminal.progress("training", is_quiet=is_quiet or is_json or not is_main) as report:
        from backtrack.train.trainers.check import library_faults
        from backtrack.train.trainers.resume import read_end
        from backtrack.train.trainers.train import train as train_recipe

        loaded = load_recipe(path, settings, checks=[library_faults])
        run = train_recipe(
            loaded,
            recipe_text=read_text(path),
            resume=is_resumed,
            on_progress=lambda p: report(p.done, p.total, _doing(p, loaded)),
        )
    if not is_main:
        return
    end = read_end(run)
    if is_json:
        reason = None if end is None else end.reason
        print_json({"run": str(run.path), "steps": list(run.steps), "stopped": reason})
        return
    if end is not None and end.reason is not None:
        terminal.out.print(f"Stopped early: {end.reason}.", soft_wrap=True)
    terminal.out.print(
        f"{run.path}: {len(run.steps)} checkpoints, last step {run.final.step}. "
        f"Choose a point: backtrack select {shlex.quote(str(run.path))}",
        soft_wrap=True,
    )


@app.command()
def adopt(
    source: Annotated[Path, typer.Argument(help="Folder of a Trainer, an adapter or a model.")],
    base: BaseOption = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    initial: Annotated[
        Path | None,
        typer.Option(help="Adapter saved before the first step; needed by PiSSA and similar."),
    ] = None,
    dtype: DtypeOption = None,
    *,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Adopt another trainer's checkpoints as a run, without copying them."""
    run = adopt_folder(
        source, base, name, recipe, initial,
        dtype=dtype, is_quiet=is_quiet or is_json,
    )  # fmt: skip
    if overrides:
        set_choosing(run, recipe, overrides)
        run.save_choosing()
    if is_json:
        print_json({"run": str(run.path), "steps": list(run.steps), "base": run.base.model})
        return
    terminal.out.print(
        f"{run.path}: {len(run.steps)} checkpoints from {source}, base {run.base.model}.",
        soft_wrap=True,
    )


@app.command()
def rebase(
    base: Annotated[str, typer.Option(help="Hub name, or the folder where the base is now.")],
    run: RunArgument = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub name.")] = None,
    *,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Record where a run's base is now; another base is refused."""
    from backtrack.run.directory import Run
    from backtrack.run.finding import find_run

    opened = Run.open(find_run(run))
    sentence = record_base(opened, base, revision)
    if is_json:
        print_json({"run": str(opened.path), "base": opened.base.model})
    elif not is_quiet:
        terminal.print_line(sentence)


def _plan(path: Path, overrides: Sequence[str], *, is_json: bool) -> None:
    """Print what training would need, after checking all that can be checked beforehand."""
    from backtrack.recipe import load_recipe
    from backtrack.train.plan.plan import make_plan, require_plannable, resource_shortages
    from backtrack.train.trainers.check import library_faults

    loaded = load_recipe(path, overrides, checks=[library_faults])
    require_plannable(loaded)
    plan = make_plan(loaded)
    lacking = resource_shortages(plan, Path(loaded.output))
    if is_json:
        print_json({**plan.as_dict(), "lacking": lacking})
        return
    folder = Path(loaded.output) / loaded.name
    terminal.out.print(f"{folder} would be trained.", soft_wrap=True)
    print_plan(plan)
    for sentence in lacking or ["This machine has the disk and memory for it."]:
        terminal.out.print(sentence, soft_wrap=True)


def _doing(progress: TrainingProgress, recipe: Recipe) -> str:
    """The latest figures of a training, most important first, and the checkpoints saved."""
    parts = []
    if progress.probe is not None:
        probe = progress.probe
        parts.append(f"general {probe.general:.3g}, target {probe.target:.3g} at {probe.step}")
    if progress.reward is not None:
        parts.append(f"reward {progress.reward:.3g}")
    elif progress.loss is not None:
        parts.append(f"loss {progress.loss:.4g}")
    index = Path(recipe.output) / recipe.name / "trajectory" / "index.jsonl"
    num_saved = index.read_bytes().count(b"\n") if index.exists() else 0
    return ", ".join([*parts, f"{num_saved} saved"])
