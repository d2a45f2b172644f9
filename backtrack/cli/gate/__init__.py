"""The command `gate`.

command   options, exit codes, what is printed
opening   both sides, by what the user wrote
"""

from backtrack.cli.gate import command  # noqa: F401
