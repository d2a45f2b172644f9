"""The command `doctor`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from backtrack import terminal
from backtrack.cli.app import app
from backtrack.cli.options import JsonOption, QuietOption, VerboseOption
from backtrack.cli.targets import print_json


@app.command()
def doctor(
    folder: Annotated[Path, typer.Argument(help="Folder of the runs.")] = Path("runs"),
    *,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Check what this machine supports, and what to install for the rest."""
    from backtrack.doctor import examine

    found = list(examine(folder))
    if is_json:
        print_json([dataclasses.asdict(each) for each in found])
        return
    shown = [each for each in found if each.sign != "ok"] if is_quiet else found
    terminal.print_findings([(each.sign, each.topic, each.text, each.advice) for each in shown])
