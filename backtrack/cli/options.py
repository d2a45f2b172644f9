"""Options and arguments shared by several commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from backtrack.cli.verbosity import LOG_VARIABLE, configure_logging


def run_names(incomplete: str) -> list[str]:
    """Runs in `runs/`, for shell completion."""
    from backtrack.run.finding import find_runs

    return [path.name for path in find_runs(Path("runs")) if path.name.startswith(incomplete)]


def recipe_names(incomplete: str) -> list[str]:
    """Packaged recipes and local YAML files, for shell completion."""
    from backtrack.recipe import packaged_recipes

    names = [path.stem for path in packaged_recipes()]
    names += [str(path) for path in sorted(Path().glob("*.y*ml"))]
    return [name for name in names if name.startswith(incomplete)]


class ExportForm(StrEnum):
    """What an export contains."""

    ADAPTER = "adapter"
    MERGED = "merged"


class LoadDtype(StrEnum):
    """Dtype that weights are loaded in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="A run, or a folder of checkpoints to adopt; default: the newest run.",
        show_default=False,
        autocompletion=run_names,
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base",
        help="Base model, if an adopted folder does not name it, or where a run's is now.",
    ),
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="What the run is measured and chosen by from now on, a file, a name or - for "
        "standard input; training's recipe stays.",
        autocompletion=recipe_names,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no notes; lists show only names.")
]
VerboseOption = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        callback=configure_logging,
        show_default=False,
        help=f"Log to standard error; -vv logs more. {LOG_VARIABLE}=info or debug does the same.",
    ),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Let a run that was made elsewhere use the code that it asks for: functions of its "
        "recipe, code of its base's repository.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe; repeatable."),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="Torch device of the model: sets placement.device."),
]
DtypeOption = Annotated[
    LoadDtype | None,
    typer.Option(
        "--dtype",
        help="Dtype to load weights in; default: the recipe's, or the base's own. A run keeps its "
        "own.",
    ),
]
BatchSizeOption = Annotated[
    str | None,
    typer.Option("--batch-size", help="Requests a pass, or auto: sets search.batch_size."),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of items, sampler and bootstrap: sets search.seed."),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit",
        metavar="N",
        min=4,
        help="Items of each objective, half of them for the report: sets search.items.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Processes that measure, one per GPU if there are several, or an arena's entrants at "
        "once; the recipe's `cluster.actors`.",
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Work on a running Ray cluster: its address, or `auto` for the one this machine "
        "belongs to.",
    ),
]


def as_settings(
    overrides: list[str] | None,
    *,
    dtype: LoadDtype | None = None,
    device: str | None = None,
    batch_size: str | None = None,
    seed: int | None = None,
    limit: int | None = None,
) -> list[str]:
    """The keys that `--set` and the options of the same meaning set."""
    given = {
        "base.dtype": dtype,
        "placement.device": device,
        "search.batch_size": batch_size,
        "search.seed": seed,
    }
    if limit is not None:
        given["search.items"] = f"{{selection: {limit - limit // 2}, report: {limit // 2}}}"
    short = [f"{key}={value}" for key, value in given.items() if value is not None]
    return [*short, *(overrides or ())]
