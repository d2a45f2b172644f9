"""Answers given for points before the model is moved to them.

A batch costs little more when it is filled with the same requests at points that are expected
next. What was answered for them is kept until the model is at that point and is asked the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from backtrack.point import Point

Answer = TypeVar("Answer")


class AnswersAhead(Generic[Answer]):
    """Answers by point and request, for the current point and those expected next.

    Attributes:
        point: Where the model is.
    """

    def __init__(self, point: Point) -> None:
        self.point = point
        self._expected: tuple[Point, ...] = ()
        self._answers: dict[tuple[Point, Hashable], Answer] = {}

    @property
    def points(self) -> tuple[Point, ...]:
        """The points that may be asked for: the current one, then those expected."""
        return tuple(dict.fromkeys([self.point, *self._expected]))

    def expect(self, points: Sequence[Point]) -> None:
        """Set the points that come next, in any order."""
        self._expected = tuple(points)
        self._forget()

    def arrive(self, point: Point) -> None:
        """Set the current point."""
        self.point = point
        self._forget()

    def has(self, point: Point, request: Hashable) -> bool:
        """Whether the request was answered at a point."""
        return (point, request) in self._answers

    def keep(self, point: Point, request: Hashable, answer: Answer) -> None:
        """Keep an answer until its point is neither current nor expected."""
        self._answers[point, request] = answer

    def here(self, request: Hashable) -> Answer:
        """The answer at the current point.

        Raises:
            KeyError: The request was not answered here.
        """
        return self._answers[self.point, request]

    def _forget(self) -> None:
        points = set(self.points)
        self._answers = {key: a for key, a in self._answers.items() if key[0] in points}
