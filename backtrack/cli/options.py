"""Options and arguments that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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
