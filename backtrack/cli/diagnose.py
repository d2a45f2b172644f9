"""The command `diagnose`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backtrack import terminal
from backtrack.cli.app import app
from backtrack.cli.options import (
    BaseOption,
    JsonOption,
    QuietOption,
    RayOption,
    RecipeOption,
    RunArgument,
    SetOption,
    TrustOption,
    VerboseOption,
    WorkersOption,
)
from backtrack.cli.targets import cluster_of, command_line, named_points, open_run, print_json
from backtrack.errors import UsageError
from backtrack.point import find_point
from backtrack.records import ROLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.records import Role
    from backtrack.records.diagnosis import Diagnosis, ModuleGeometry


class Mode(StrEnum):
    """How singular values are computed."""

    AUTO = "auto"
    EXACT = "exact"
    RANDOMIZED = "randomized"


@app.command()
def diagnose(
    run: RunArgument = None,
    base: BaseOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    points: Annotated[
        list[str] | None,
        typer.Option(
            "--point",
            metavar="POINT",
            help="base, chosen, final, STEP:ALPHA[:PROFILE], or ALPHA of the last step; default: "
            "the final checkpoint and the chosen point.",
        ),
    ] = None,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Modules to diagnose: a path, a pattern such as '*.down_proj', or a location "
            "such as late.mlp; default: all linear modules.",
        ),
    ] = None,
    locations: Annotated[
        list[str] | None,
        typer.Option(
            "--location",
            metavar="NAME",
            help="Modules whose activations are compared, such as paper8, those of PEFT-Arena's "
            "release; default: attention and MLP at four depths.",
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=FILE",
            help="Prompts instead of the objectives': target=FILE or general=FILE.",
        ),
    ] = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Most prompts per role.")] = 64,
    mode: Annotated[Mode, typer.Option(help="How singular values are computed.")] = Mode.AUTO,
    seed: Annotated[int, typer.Option(help="Seed for sampling prompts and projections.")] = 0,
    workers: WorkersOption = None,
    ray: RayOption = None,
    *,
    has_path: Annotated[
        bool, typer.Option("--path/--no-path", help="Also diagnose along the path.")
    ] = True,
    may_run_code: TrustOption = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Show which modules an update changes, and how weights and activations change."""
    files = _files(prompts or ())
    opened = open_run(run, base, recipe, overrides, may_run_code=may_run_code)
    chosen = [find_point(text, named_points(opened)) for text in points or ()]
    with terminal.progress("diagnosing", is_quiet=is_quiet or is_json) as report:
        from backtrack.diagnose.diagnose import diagnose as diagnose_run
        from backtrack.diagnose.diagnoser import Options

        options = Options(
            modules=modules or (),
            locations=locations or (),
            prompts=files,
            num_prompts=num_prompts,
            mode=mode.value,
            has_path=has_path,
            seed=seed,
            cluster=cluster_of(opened, workers, ray),
        )
        found = diagnose_run(opened, chosen, options, on_progress=report, command=command_line())
    from backtrack.report.geometry.figures import write_figures

    figures = write_figures(opened.path, found.diagnosis, found.lines)
    if is_json:
        lines = [line.model_dump(mode="json") for line in found.lines]
        print_json({**found.diagnosis.model_dump(mode="json"), "lines": lines})
        return
    _print(found.diagnosis, found.lines)
    for path in figures:
        terminal.out.print(f"figure   {path}", soft_wrap=True)


def _files(texts: Sequence[str]) -> dict[Role, Path]:
    found: dict[Role, Path] = {}
    for text in texts:
        role, _, name = text.partition("=")
        if role not in ROLES or not Path(name).is_file():
            raise UsageError(
                f"--prompts {text!r}: write target=FILE or general=FILE, naming a file."
            )
        found[role] = Path(name)
    return found


def _print(diagnosis: Diagnosis, lines: Sequence[ModuleGeometry]) -> None:
    from backtrack.report.geometry import rows as geometry_rows

    shown = f"{len(diagnosis.modules)} linear modules of {diagnosis.run}"
    read = ", ".join(f"{p.num_tokens:,} tokens of {p.role} prompts" for p in diagnosis.prompts)
    terminal.out.print(f"{shown}; {read}")
    for point in diagnosis.points:
        terminal.print_rows(*geometry_rows.summary(point, lines))
        terminal.print_rows(*geometry_rows.by_block([point], lines))
    if diagnosis.correlations:
        terminal.print_rows(*geometry_rows.correlation_table(diagnosis.correlations))
    for note in diagnosis.notes:
        terminal.out.print(f"- {note}", style="yellow")
