"""The command line: parse, call one library function, print. Nothing imports this package.

Heavy libraries are imported inside the commands, so that `--help` is fast. Exit codes: 0 done,
1 failed, 2 wrong use, 3 undecided (`gate`), 130 interrupted. Importing a command module adds its
commands to `app`, in the order of the help.
"""

from backtrack.cli import train, search, select, answers, export  # noqa: F401, I001
from backtrack.cli import gate, diagnose, arena, doctor, recipes  # noqa: F401
from backtrack.cli.app import app, main

__all__ = ["app", "main"]
