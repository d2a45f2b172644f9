"""The application: its commands' home, its exit codes, its errors in one voice."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from backtrack import terminal
from backtrack.errors import BacktrackError

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    _be_quiet()
    try:
        code = app(args=list(arguments) if arguments is not None else None, standalone_mode=False)
    except BacktrackError as error:
        terminal.print_error(str(error))
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        if error.format_message():  # without a command the help has been shown already
            terminal.print_error(_usage(error))
        sys.exit(EXIT_USAGE)
    except typer.Abort:
        code = EXIT_INTERRUPTED
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except OSError as error:
        terminal.print_error(f"{error.filename or 'the disk'}: {error.strerror or error}.")
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  # nothing of ours: the trace says where
        terminal.print_unexpected(error)
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
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")
