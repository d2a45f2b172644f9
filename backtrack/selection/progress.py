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
        done: Points done.
        total: Points in all, as far as is known.
        point: The point under way, or the last one.
        objective: The objective under way, or the last one.
        seconds_left: At the pace of the points measured so far; none before the first.
    """

    done: int
    total: int
    point: Point
    objective: str
    seconds_left: float | None


class Meter:
    """Counts points and tells a listener."""

    def __init__(self, total: int, listener: Callable[[Progress], None] | None) -> None:
        self._total = total
        self._listener = listener
        self._done = 0
        self._seconds: list[float] = []
        self._last = ""

    def skip(self, point: Point, count: int) -> None:
        """So many points were done by an earlier search; `point` is the last one done."""
        self._done += count
        self._tell(point)

    def begins(self, point: Point, objective: str) -> None:
        """An objective is about to be measured."""
        self._last = objective
        self._tell(point)

    def ends(self, point: Point, seconds: float | None) -> None:
        """A point is done; `seconds` is none where nothing had to be measured."""
        self._done += 1
        if seconds is not None:
            self._seconds.append(seconds)
        self._tell(point)

    def _tell(self, point: Point) -> None:
        if self._listener is None:
            return
        pace = sum(self._seconds) / len(self._seconds) if self._seconds else None
        left = None if pace is None else pace * (self._total - self._done)
        self._listener(Progress(self._done, self._total, point, self._last, left))
