"""Commands that show what the model says, kept or now."""

from backtrack.cli.answers import compare, chat  # noqa: I001  # in the order of the help

__all__ = ["chat", "compare"]
