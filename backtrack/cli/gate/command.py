"""The command `gate`."""

from __future__ import annotations

from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from backtrack import terminal
from backtrack.cli.app import EXIT_FAILED, EXIT_UNDECIDED, app
from backtrack.cli.gate.opening import Opening
from backtrack.cli.options import (
    BaseOption,
    BatchSizeOption,
    DeviceOption,
    JsonOption,
    LimitOption,
    QuietOption,
    RayOption,
    RecipeOption,
    SetOption,
    TrustOption,
    VerboseOption,
    WorkersOption,
    as_settings,
)
from backtrack.cli.targets import print_json
from backtrack.errors import BacktrackError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backtrack.records.gate import GateBound, GateResult

_EXIT_CODES = {"passes": 0, "fails": EXIT_FAILED, "undecided": EXIT_UNDECIDED}


@app.command()
def gate(
    candidate: Annotated[
        str,
        typer.Argument(
            metavar="CANDIDATE",
            help="RUN or RUN@POINT (base, chosen, final, STEP:ALPHA, ALPHA), an adapter, a "
            "model, a folder of lm-eval's with samples, or a measurements.jsonl.",
        ),
    ],
    against: Annotated[
        str, typer.Option(metavar="INCUMBENT", help="What is in use; written as a candidate is.")
    ],
    max_drop: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Largest drop of an objective; repeatable."),
    ] = None,
    min_gain: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Smallest gain of an objective; repeatable."),
    ] = None,
    max_general_drop: Annotated[
        float | None, typer.Option(min=0, help="Largest drop of the general score, in points.")
    ] = None,
    max_target_drop: Annotated[
        float | None, typer.Option(min=0, help="Largest drop of the target score, in points.")
    ] = None,
    min_target_gain: Annotated[
        float | None, typer.Option(help="Smallest gain of the target score, in points.")
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="Confidence of what is claimed, for all bounds together.")
    ] = 0.95,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A task of lm-eval's that is the target; without one all are general."),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown here.")] = None,
    base: BaseOption = None,
    recipe: RecipeOption = None,
    overrides: SetOption = None,
    device: DeviceOption = None,
    batch_size: BatchSizeOption = None,
    limit: LimitOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    *,
    may_run_code: TrustOption = False,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Say whether a candidate loses more than allowed against an incumbent.

    Exit codes: 0 it passes, 1 it fails, 3 the items cannot tell, 2 any error. Items are measured
    in nested parts until that is certain; sides whose scores are recorded need no model. What is
    set here holds for this command only.
    """
    for file in (junit, markdown):
        if file is not None and not file.absolute().parent.is_dir():
            raise UsageError(f"{file} cannot be written: there is no folder {file.parent}.")
    from backtrack.gate import gate as compare_sides
    from backtrack.gate import output
    from backtrack.run.files import write_atomically

    bounds = [
        *_named_bounds("max_drop", max_drop),
        *_named_bounds("min_gain", min_gain),
        *_role_bounds("max_drop", {"general": max_general_drop, "target": max_target_drop}),
        *_role_bounds("min_gain", {"target": min_target_gain}),
    ]
    settings = as_settings(overrides, device=device, batch_size=batch_size, limit=limit)
    opening = Opening(base, recipe, settings, target or (), cluster=(workers, ray),
                      may_run_code=may_run_code)  # fmt: skip
    with _no_error_is_a_failure(), closing(opening):
        with terminal.progress("measuring", is_quiet=is_quiet or is_json) as report:
            sides = opening.sides(candidate, against)
            result = compare_sides(*sides, bounds, confidence=confidence, seed=opening.seed,
                                   on_progress=report)  # fmt: skip
        if junit is not None:
            write_atomically(junit, output.junit(result))
        if markdown is not None:
            write_atomically(markdown, output.markdown(result))
    if is_json:
        print_json(result.model_dump(mode="json"))
    else:
        _print(result, is_quiet=is_quiet)
    raise typer.Exit(_EXIT_CODES[result.outcome])


@contextmanager
def _no_error_is_a_failure() -> Iterator[None]:
    """Let no error end with the exit code that says that the candidate fails."""
    try:
        yield
    except UsageError:
        raise
    except (BacktrackError, OSError) as error:
        raise UsageError(str(error)) from error


def _print(result: GateResult, *, is_quiet: bool) -> None:
    from backtrack.gate import output

    if is_quiet:
        terminal.print_line(result.outcome)
        return
    terminal.print_note(f"{result.candidate} against {result.incumbent}")
    terminal.print_rows(output.HEADINGS, [output.row(each) for each in result.bounds])
    terminal.out.print(output.sentence(result), markup=False, style="bold", soft_wrap=True)
    for note in output.notes(result):
        terminal.print_line(f"- {note}")


def _named_bounds(kind: str, texts: Sequence[str] | None) -> Iterator[GateBound]:
    """Bounds on objectives, written `NAME=NUMBER`."""
    for text in texts or ():
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            name, value = "", 0.0
        if not name:
            raise UsageError(
                f"--{kind.replace('_', '-')} {text!r}: write NAME=NUMBER, such as ifeval=1."
            )
        yield _bound(kind, name, value)


def _role_bounds(kind: str, by_role: dict[str, float | None]) -> Iterator[GateBound]:
    for role, number in by_role.items():
        if number is not None:
            yield _bound(kind, role, number, is_role=True)


def _bound(kind: str, name: str, number: float, *, is_role: bool = False) -> GateBound:
    from pydantic import ValidationError

    from backtrack.records.gate import GateBound

    values = {"kind": kind, "name": name, "number": number, "is_role": is_role}
    try:
        return GateBound.model_validate(values)
    except ValidationError as error:
        message = error.errors()[0]["msg"].lower()
        raise UsageError(f"the bound on {name}: {message}, got {number:g}.") from error
