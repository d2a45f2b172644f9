"""Configure logging for `--verbose` and `BACKTRACK_LOG`; without them nothing is configured."""

from __future__ import annotations

import logging
import os
import sys

import backtrack
from backtrack import terminal
from backtrack.errors import UsageError

LOG_VARIABLE = "BACKTRACK_LOG"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}
_LIBRARY_VARIABLES = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY")
_CHATTY = "bitsandbytes"
"""Warns on import that optional kernels for CPUs are missing, also where nothing is quantized."""
_PRINTING = "DeepSpeed"
"""Logs by a handler of its own, on standard output, which is for results."""
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

logger = logging.getLogger(__name__)


class ConsoleHandler(logging.Handler):
    """Print records on standard error, above a progress bar if one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        terminal.err.print(self.format(record), soft_wrap=True)

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep our own records, and other libraries' from WARNING on."""
        is_ours = record.name.partition(".")[0] == backtrack.__name__
        return (is_ours or record.levelno >= logging.WARNING) and bool(super().filter(record))


def configure_logging(verbosity: int) -> int:
    """Log to standard error at the given level; the callback of every command's `--verbose`.

    Args:
        verbosity: How often `-v` was given: 1 is INFO, 2 is DEBUG; 0 leaves it to `BACKTRACK_LOG`.

    Raises:
        UsageError: `BACKTRACK_LOG` is not a level.
    """
    level = _level(verbosity)
    for name in _LIBRARY_VARIABLES:
        os.environ.setdefault(name, "error" if level is None else "warning")
    logging.getLogger(_CHATTY).setLevel(logging.ERROR)
    logging.getLogger(_PRINTING).addFilter(_to_standard_error)
    if level is not None:
        logging.basicConfig(format=_FORMAT, datefmt="%H:%M:%S", handlers=[ConsoleHandler()])
        logging.getLogger(backtrack.__name__).setLevel(level)
        logger.debug("backtrack %s, arguments %s", backtrack.__version__, sys.argv[1:])
    return verbosity


def _to_standard_error(record: logging.LogRecord) -> bool:
    """Take a record from its logger's own handlers: warnings are shown only if a level is set."""
    root = logging.getLogger()
    if root.handlers or record.levelno >= logging.ERROR:
        root.handle(record)
    return False


def _level(verbosity: int) -> int | None:
    if verbosity:
        return logging.INFO if verbosity == 1 else logging.DEBUG
    name = os.environ.get(LOG_VARIABLE, "").lower()
    if name and name not in LEVELS:
        raise UsageError(f"{LOG_VARIABLE}={name!r} is not a level. Set it to {', '.join(LEVELS)}.")
    return LEVELS.get(name)
