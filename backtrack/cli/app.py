"""The Typer application: entry point, exit codes and error output."""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from backtrack import terminal
from backtrack.errors import BacktrackError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typer.models import CommandFunctionType

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNDECIDED = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
_INTERRUPTED = (
    "interrupted. What was saved and measured is kept: the same command continues from there; "
    "a training with --resume."
)


class _Command(TyperCommand):
    """A command whose help shows of each option what is to be written after it."""

    def get_params(self, ctx: Any) -> Any:
        return _with_metavars(super().get_params(ctx))


class _Group(TyperGroup):
    """A group of such commands."""

    def get_params(self, ctx: Any) -> Any:
        return _with_metavars(super().get_params(ctx))


def _with_metavars(parameters: Any) -> Any:
    """Where Typer shows `<bool>` after a flag, and `<float range>` for a number."""
    for each in parameters:
        if not isinstance(each, TyperOption) or each.metavar is not None:
            continue
        if each.is_flag or each.count:
            each.metavar = ""
        elif (each.min, each.max) != (None, None):
            each.metavar = "NUMBER"
    return parameters


class _App(typer.Typer):
    """An application of such commands."""

    def command(
        self, name: str | None = None, **options: Any
    ) -> Callable[[CommandFunctionType], CommandFunctionType]:
        return super().command(name, cls=_Command, **options)


app = _App(
    name="backtrack",
    cls=_Group,
    help="Find the best point on a fine-tuning path, without training again.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(*, is_asked: bool) -> None:
    if is_asked:
        from backtrack import __version__

        terminal.print_line(f"backtrack {__version__}")
        raise typer.Exit


@app.callback()
def start(
    *,
    _is_version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            help="Print the version and exit.",
            callback=lambda value: _print_version(is_asked=value),
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Find the best point on a fine-tuning path, without training again."""


recipes_app = _App(cls=_Group, help="Recipes shipped with the package.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    _be_quiet()
    received: list[int] = []
    _interrupt_on_sigterm(received)
    try:
        code = app(args=list(arguments) if arguments is not None else None, standalone_mode=False)
    except BacktrackError as error:
        terminal.print_error(str(error))
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        if error.format_message():  # without a command, the help was already shown
            terminal.print_error(_usage(error))
        sys.exit(EXIT_USAGE)
    except (typer.Abort, KeyboardInterrupt):
        code = EXIT_INTERRUPTED
    except OSError as error:
        terminal.print_error(_of_disk(error))
        sys.exit(EXIT_FAILED)
    except Exception as error:  # noqa: BLE001  # not raised on purpose: print the traceback
        terminal.print_unexpected(error)
        sys.exit(EXIT_FAILED)
    if code == EXIT_INTERRUPTED:
        terminal.print_note(_INTERRUPTED)
        code = EXIT_TERMINATED if received else code
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt_on_sigterm(received: list[int]) -> None:
    """Let SIGTERM interrupt this process as Ctrl-C does, so that what it started is ended too.

    Not by SystemExit: Ray, while it waits, passes on a KeyboardInterrupt only.

    Args:
        received: The signal is appended to it.
    """
    process_id = os.getpid()

    def interrupt(number: int, _frame: object) -> None:
        if os.getpid() != process_id:  # a child that inherited this handler ends as others do
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        received.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _usage(error: Any) -> str:
    """The message of a usage error, with the command that prints help."""
    path = error.ctx.command_path if getattr(error, "ctx", None) else "backtrack"
    said = error.format_message().replace("Value error, ", "")
    return f"{said if said.endswith(('.', '?', '!')) else f'{said}.'} See `{path} --help`."


def _of_disk(error: OSError) -> str:
    """What went wrong on the disk, with the file that was asked for, not what it is first."""
    name = re.sub(r"\.([^/]+)\.[0-9a-f]{8}\.partial$", r"\1", str(error.filename or "the disk"))
    return f"{name}: {error.strerror or error}."


def _be_quiet() -> None:
    """Turn off libraries' progress bars and advice, unless the environment asks for them."""
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")
