"""How far a search is: what a listener is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from backtrack.point import Point


@dataclass(frozen=True)
class Progress:
    """What is being measured.

    Attributes:
        done: Items scored.
        total: Items in all, as far as is known: points that drop out of the race lower it.
        point: The point under way, or the last one.
        objective: The objective under way, or the last one.
        seconds_left: At the pace of the items scored so far; none before the first.
    """

    done: int
    total: int
    point: Point
    objective: str
    seconds_left: float | None


class Meter:
    """Counts items and tells a listener."""

    def __init__(
        self, total: int, listener: Callable[[Progress], None] | None, done: int = 0
    ) -> None:
        self._total = total
        self._listener = listener
        self._done = done
        self._scored = 0
        self._seconds = 0.0
        self._last = ""

    def expect(self, total: int, done: int) -> None:
        """The search comes to so many items, of which so many are done."""
        self._total, self._done = max(total, done), done

    def begins(self, point: Point, objective: str) -> None:
        """An objective is about to be measured."""
        self._last = objective
        self._tell(point)

    def scored(self, num_items: int, seconds: float) -> None:
        """So many items were scored."""
        self._done += num_items
        self._scored += num_items
        self._seconds += seconds

    def ends(self, point: Point) -> None:
        """A point, or a part of its items, is done."""
        self._tell(point)

    def _tell(self, point: Point) -> None:
        if self._listener is None:
            return
        pace = self._seconds / self._scored if self._scored else None
        total = max(self._total, self._done)
        left = None if pace is None else pace * (total - self._done)
        self._listener(Progress(self._done, total, point, self._last, left))
