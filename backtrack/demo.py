"""Run every step on an embedded tiny model: train, search, select, export, report.

Nothing is downloaded and no result is scripted: the model in `assets/demo` was pretrained by
`examples/make_demo_model.py` on small skills in plain English, LoRA trains one of them further,
and the results are measured.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backtrack import terminal
from backtrack.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.exporter import Export
    from backtrack.records.selection import Selection
    from backtrack.run.directory import Run

ASSETS = Path(__file__).resolve().parent / "assets" / "demo"

_NEXT = (
    "With your own checkpoints, in a folder written by a Trainer:",
    "  backtrack select outputs/sft --base BASE --recipe RECIPE",
    "Recipes to start from, and training that saves a dense trajectory:",
    "  backtrack recipes list",
    "  backtrack train RECIPE",
)


@dataclass(frozen=True)
class Demo:
    """The results of the demo.

    Attributes:
        run: The run.
        selection: The chosen point and the evidence for it.
        report: Path of the report.
        export: The chosen point, exported as an adapter.
        next_commands: Lines to print at the end.
    """

    run: Run
    selection: Selection
    report: Path
    export: Export
    next_commands: tuple[str, ...]


def run_demo(
    folder: Path, *, seed: int = 0, overrides: Sequence[str] = (), is_quiet: bool = False
) -> Demo:
    """Run the demo in a new run in `folder`.

    Args:
        folder: Folder of the runs.
        seed: Seed of training, item split and search.
        overrides: Keys of its recipe to set, as `key.inner=value`.
        is_quiet: Show no progress.

    Raises:
        BacktrackError: A step failed.
    """
    recipe = demo_recipe(folder, seed, overrides)
    run = _train(recipe, is_quiet=is_quiet)
    # Imported here because they load torch, while the progress bar is shown.
    from backtrack.exporter import export
    from backtrack.report.selection.page import MAX_ITEMS, write_report
    from backtrack.selection.choice.select import select
    from backtrack.selection.measure.comparing import compare_ends

    with terminal.progress("measuring", is_quiet=is_quiet) as report:
        choice = select(
            run,
            on_progress=lambda p: report(p.done, p.total, f"{p.point}, {p.objective}"),
            command="backtrack demo" + (f" --seed {seed}" if seed else ""),
        )
    with terminal.progress("writing", is_quiet=is_quiet) as report:
        report(0, 2, "adapter")
        written = export(
            run, choice.point, run.path / "export" / "adapter", command=choice.selection.command
        )
        report(1, 2, "report")
        page = write_report(
            run.path,
            choice.selection,
            run.measurements(),
            run.entries(),
            run.sweep(),
            compared=compare_ends(run, choice.selection, MAX_ITEMS),
        )
        report(2, 2, "")
    return Demo(run, choice.selection, page, written, _next_commands(run))


def demo_recipe(folder: Path, seed: int, overrides: Sequence[str] = ()) -> Recipe:
    """The demo's recipe, with a name that is unused in `folder`."""
    name = next(n for n in _names() if not (folder / n).exists())
    own = [f"name={name}", f"output={folder}", f"seed={seed}", f"search.seed={seed}"]
    return load_recipe(ASSETS / "recipe.yaml", [*own, *overrides])


def _names() -> list[str]:
    return ["demo", *(f"demo-{number}" for number in range(2, 1000))]


def _train(recipe: Recipe, *, is_quiet: bool) -> Run:
    with terminal.progress("training", is_quiet=is_quiet) as report:
        from backtrack.train.trainers.train import train

        return train(
            recipe,
            recipe_text=(ASSETS / "recipe.yaml").read_text(encoding="utf-8"),
            on_progress=lambda p: report(
                p.done, p.total, "" if p.loss is None else f"loss {p.loss:.3f}"
            ),
        )


def _next_commands(run: Run) -> tuple[str, ...]:
    where = shlex.quote(str(run.path))
    return (
        "Choose again; only the report items of a new choice are measured:",
        f"  backtrack select {where} --weight 0.8",
        f"  backtrack select {where} --max-general-drop 2",
        *_NEXT,
    )
