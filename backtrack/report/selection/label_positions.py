"""Where labels stand in a drawing, so that they cover neither points nor lines nor each other.

Greedy: labels are placed in their order, each at the free spot around its anchor that covers
least. Not promised: the best placement of all labels together, or exact text widths.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Spot = tuple[float, float]

CHARACTER_WIDTH = 6.6
LINE_HEIGHT = 14.0
SAMPLE_EVERY = 5.0
NEARNESS = 11.0
TOLERATED = 1.0
OUTSIDE_COST = 100.0
ALIGNMENTS = {1: "left", 0: "center", -1: "right"}
BASELINES = {1: "top", 0: "middle", -1: "bottom"}
REACHES = (1.0, 1.9, 2.8)
DIRECTIONS = ((1, -1), (-1, -1), (1, 1), (-1, 1), (1, 0), (-1, 0), (0, -1), (0, 1))


@dataclass(frozen=True)
class Label:
    """A text to place.

    Attributes:
        text: What it says.
        anchor: What it stands next to, in pixels from the top left.
        is_needed: Shown even where it covers something; else left out there.
        gap: Free room between anchor and text, in pixels.
    """

    text: str
    anchor: Spot
    is_needed: bool
    gap: float = 8.0


@dataclass(frozen=True)
class Placed:
    """Where a label's text starts and how it is aligned, relative to its anchor."""

    dx: float
    dy: float
    align: str
    baseline: str


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels from the top left."""

    left: float
    top: float
    right: float
    bottom: float

    def count(self, spots: Floats) -> int:
        """How many of the spots, [spots, 2], it covers."""
        x, y = spots.T
        across = (self.left <= x) & (x <= self.right)
        return int((across & (self.top <= y) & (y <= self.bottom)).sum())

    def grown(self, by: float) -> Box:
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


@dataclass(frozen=True)
class Frame:
    """How values become pixels in a drawing.

    Attributes:
        x: Value at the left and at the right end; the greater first where the scale is reversed.
        y: Value at the bottom and at the top.
        size: Width and height in pixels.
    """

    x: Spot
    y: Spot
    size: Spot

    def spot(self, x: float, y: float) -> Spot:
        width, height = self.size
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return across * width, (1 - up) * height


def place(
    labels: Sequence[Label], marks: Sequence[Spot], lines: Sequence[Sequence[Spot]], size: Spot
) -> tuple[Placed | None, ...]:
    """A place for each label, none for one that is not needed and finds no free spot.

    Args:
        labels: Most important first.
        marks: Points of the drawing, in pixels; a label stands nearer to its own than to others.
        lines: Corners of each line, in pixels.
        size: Width and height of the drawing, in pixels.
    """
    obstacles = np.array([spot for line in lines for spot in along(line)]).reshape(-1, 2)
    spots = np.array(marks).reshape(-1, 2)
    taken: list[Box] = []
    places: list[Placed | None] = []
    for label in labels:
        others = spots[(spots != label.anchor).any(axis=1)]
        tries = _tries(label, taken, size)
        cost, box, placed = min(
            ((cost + _covered(box, others, obstacles), box, at) for cost, box, at in tries),
            key=lambda found: found[0],
        )
        is_shown = label.is_needed or cost < TOLERATED
        places.append(placed if is_shown else None)
        if is_shown:
            taken.append(box)
    return tuple(places)


def along(path: Sequence[Spot]) -> list[Spot]:
    """Spots every few pixels of a line through `path`, its corners included."""
    spots = list(path[:1])
    for (x0, y0), (x1, y1) in itertools.pairwise(path):
        parts = max(1, round(max(abs(x1 - x0), abs(y1 - y0)) / SAMPLE_EVERY))
        spots += [
            (x0 + (x1 - x0) * i / parts, y0 + (y1 - y0) * i / parts) for i in range(1, parts + 1)
        ]
    return spots


def _tries(label: Label, taken: Sequence[Box], size: Spot) -> Iterator[tuple[float, Box, Placed]]:
    """Places around the anchor, each with what it costs besides the drawing it covers."""
    reaches = REACHES if label.is_needed else REACHES[:1]
    for preference, (reach, (right, down)) in enumerate(itertools.product(reaches, DIRECTIONS)):
        slant = 0.75 if right and down else 1.0
        dx, dy = right * label.gap * reach * slant, down * label.gap * reach * slant
        box = _box(label, dx, dy, (right, down))
        clashes = _is_outside(box, size) + sum(box.overlaps(other) for other in taken)
        placed = Placed(dx, dy, ALIGNMENTS[right], BASELINES[down])
        yield OUTSIDE_COST * clashes + 0.1 * preference, box, placed


def _covered(box: Box, others: Floats, obstacles: Floats) -> float:
    near = box.grown(NEARNESS)
    return float(near.count(others) + box.count(others) + box.count(obstacles))


def _box(label: Label, dx: float, dy: float, direction: tuple[int, int]) -> Box:
    width = CHARACTER_WIDTH * len(label.text)
    left = label.anchor[0] + dx - width * (1 - direction[0]) / 2
    top = label.anchor[1] + dy - LINE_HEIGHT * (1 - direction[1]) / 2
    return Box(left, top, left + width, top + LINE_HEIGHT)


def _is_outside(box: Box, size: Spot) -> bool:
    return box.left < 0 or box.top < 0 or box.right > size[0] or box.bottom > size[1]
