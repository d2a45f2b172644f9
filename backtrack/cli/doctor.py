"""The command `doctor`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from backtrack import terminal
from backtrack.cli.app import app
from backtrack.cli.options import JsonOption, QuietOption, VerboseOption, recipe_names
from backtrack.cli.targets import load_named, print_json, recipe_path


@app.command()
def doctor(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            help="A recipe: of extras and engines, only what it needs is checked.",
            show_default=False,
            autocompletion=recipe_names,
        ),
    ] = None,
    folder: Annotated[Path, typer.Option("--runs", help="Folder of the runs.")] = Path("runs"),
    *,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Check what this machine supports, and what to install for the rest."""
    from backtrack.doctor import examine

    needs = load_named(recipe_path(recipe)) if recipe is not None else None
    found = list(examine(folder, needs))
    if is_json:
        print_json([dataclasses.asdict(each) for each in found])
        return
    shown = [each for each in found if each.sign != "ok"] if is_quiet else found
    terminal.print_findings([(each.sign, each.topic, each.text, each.advice) for each in shown])
