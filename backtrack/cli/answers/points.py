"""Points of a run by name, as its commands take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack.cli.export import parse_point

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backtrack.point import Point

NAMES = ("base", "chosen", "final")


def is_point(text: str) -> bool:
    """Whether an argument names a point, and no run."""
    return text in NAMES or text.replace(".", "").replace(":", "").isdigit()


def find_point(text: str, named: Mapping[str, Point]) -> Point:
    """The point that a text names: base, chosen, final, STEP:ALPHA, or ALPHA of the last step.

    Args:
        text: The text.
        named: Points of `NAMES`, the final checkpoint among them.

    Raises:
        UsageError: It names no point.
    """
    if text in named:
        return named[text]
    return parse_point(text if ":" in text else f"{named['final'].step}:{text}")
