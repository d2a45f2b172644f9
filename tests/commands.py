"""Commands as a user types them, run in this process.

An interpreter of its own, which imports torch first, takes longer than most of them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import warnings
from typing import TYPE_CHECKING
from unittest import mock

from backtrack import cli

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def backtrack(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What a command prints in a folder, and how it ends; this process is left as it was."""
    out, err = io.StringIO(), io.StringIO()
    words = [str(argument) for argument in arguments]
    with (
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ),
        warnings.catch_warnings(),
        _logging_left_as_it_was(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main(words)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def hear_interrupts() -> None:
    """In a child process: SIGINT interrupts it, also where tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def _logging_left_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("backtrack")
    handlers, level = root.handlers[:], ours.level
    root.handlers.clear()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        ours.setLevel(level)
