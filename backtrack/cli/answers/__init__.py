"""Commands that show what the model says, kept or now."""

from backtrack.cli.answers import compare

__all__ = ["compare"]
