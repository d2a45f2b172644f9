"""Progress of a search or a report, for a listener such as a progress bar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from backtrack.point import Point


@dataclass(frozen=True)
class Progress:
    """Items that a command has scored so far, and what is being measured.

    Attributes:
        done: Items it scored; what was recorded before does not count.
        total: Items it is expected to score in all; it falls when racing drops points.
        point: The point being measured, or the last one.
        objective: The objective being measured, or the last one.
        seconds_left: Time left at the pace so far; None before the first items are scored.
    """

    done: int
    total: int
    point: Point
    objective: str
    seconds_left: float | None


class Meter:
    """Counts scored items and calls a listener."""

    def __init__(self, total: int, listener: Callable[[Progress], None] | None) -> None:
        self._total = total
        self._listener = listener
        self._done = 0
        self._seconds = 0.0
        self._last = ""

    def expect(self, num_left: int) -> None:
        """Set the expected number of items that are still to be scored."""
        self._total = self._done + num_left

    def begins(self, point: Point, objective: str) -> None:
        """Report that an objective is about to be measured."""
        self._last = objective
        self._report(point)

    def scored(self, num_items: int, seconds: float) -> None:
        """Count items that were scored."""
        self._done += num_items
        self._seconds += seconds

    def ends(self, point: Point) -> None:
        """Report that a point, or one of its rungs, is done."""
        self._report(point)

    def _report(self, point: Point) -> None:
        if self._listener is None:
            return
        pace = self._seconds / self._done if self._done else None
        total = max(self._total, self._done)
        seconds_left = None if pace is None else pace * (total - self._done)
        self._listener(Progress(self._done, total, point, self._last, seconds_left))
