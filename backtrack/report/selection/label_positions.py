"""Positions of labels in a chart, so that they cover neither points nor lines nor each other.

Greedy: labels are positioned in order, each around its anchor at the position that covers least.
Not promised: the best positions of all labels together, or exact text widths.
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

Pixel = tuple[float, float]
"""x and y in pixels from the top left."""

CHARACTER_WIDTH = 6.6
LINE_HEIGHT = 14.0
SAMPLE_EVERY = 5.0
"""Pixels between samples of a line."""
CLEARANCE = 11.0
"""Pixels between a label and the marks of other points."""
MAX_COST = 1.0
"""Of a label that is not needed; above, it is left out."""
OVERLAP_COST = 100.0
"""Of covering another label or reaching outside the chart."""
ALIGNMENTS = {1: "left", 0: "center", -1: "right"}
BASELINES = {1: "top", 0: "middle", -1: "bottom"}
GAP_FACTORS = (1.0, 1.9, 2.8)
"""Gaps tried for a needed label; for others only the first is."""
DIRECTIONS = ((1, -1), (-1, -1), (1, 1), (-1, 1), (1, 0), (-1, 0), (0, -1), (0, 1))


@dataclass(frozen=True)
class Label:
    """A text next to a point.

    Attributes:
        text: What it says.
        anchor: The point.
        is_needed: Shown even if it covers something; otherwise left out then.
        gap: Distance between anchor and text, in pixels.
    """

    text: str
    anchor: Pixel
    is_needed: bool
    gap: float = 8.0


@dataclass(frozen=True)
class LabelPosition:
    """Offset of a label's text from its anchor in pixels, and its alignment there."""

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

    def count(self, pixels: Floats) -> int:
        """Number of pixels, [pixels, 2], inside."""
        x, y = pixels.T
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
class PlotArea:
    """Maps values to pixels.

    Attributes:
        x: Values at the left and the right end; the greater first if the scale is reversed.
        y: Values at the bottom and the top.
        size: Width and height in pixels.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    size: tuple[float, float]

    def pixel(self, x: float, y: float) -> Pixel:
        width, height = self.size
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return across * width, (1 - up) * height


def position_labels(
    labels: Sequence[Label],
    marks: Sequence[Pixel],
    lines: Sequence[Sequence[Pixel]],
    size: tuple[float, float],
) -> tuple[LabelPosition | None, ...]:
    """A position for each label; None for one that is not needed and finds no free position.

    Args:
        labels: Most important first.
        marks: Points of the chart; a label keeps its distance from those that are not its own.
        lines: Corners of each line.
        size: Width and height of the chart, in pixels.
    """
    line_pixels = np.array([p for line in lines for p in sample_line(line)]).reshape(-1, 2)
    mark_pixels = np.array(marks).reshape(-1, 2)
    taken: list[Box] = []
    positions: list[LabelPosition | None] = []
    for label in labels:
        others = mark_pixels[(mark_pixels != label.anchor).any(axis=1)]
        options = _options(label, taken, size)
        cost, box, position = min(
            ((cost + _covered(box, others, line_pixels), box, p) for cost, box, p in options),
            key=lambda option: option[0],
        )
        is_shown = label.is_needed or cost < MAX_COST
        positions.append(position if is_shown else None)
        if is_shown:
            taken.append(box)
    return tuple(positions)


def sample_line(corners: Sequence[Pixel]) -> list[Pixel]:
    """Pixels along a line, about `SAMPLE_EVERY` apart, its corners included."""
    pixels = list(corners[:1])
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        parts = max(1, round(max(abs(x1 - x0), abs(y1 - y0)) / SAMPLE_EVERY))
        pixels += [
            (x0 + (x1 - x0) * i / parts, y0 + (y1 - y0) * i / parts) for i in range(1, parts + 1)
        ]
    return pixels


def _options(
    label: Label, taken: Sequence[Box], size: tuple[float, float]
) -> Iterator[tuple[float, Box, LabelPosition]]:
    """Positions around the anchor, each with its cost apart from the marks it covers."""
    factors = GAP_FACTORS if label.is_needed else GAP_FACTORS[:1]
    for preference, (factor, (right, down)) in enumerate(itertools.product(factors, DIRECTIONS)):
        slant = 0.75 if right and down else 1.0
        dx, dy = right * label.gap * factor * slant, down * label.gap * factor * slant
        box = _box(label, dx, dy, (right, down))
        overlaps = _is_outside(box, size) + sum(box.overlaps(other) for other in taken)
        position = LabelPosition(dx, dy, ALIGNMENTS[right], BASELINES[down])
        yield OVERLAP_COST * overlaps + 0.1 * preference, box, position


def _covered(box: Box, marks: Floats, line_pixels: Floats) -> float:
    near = box.grown(CLEARANCE)
    return float(near.count(marks) + box.count(marks) + box.count(line_pixels))


def _box(label: Label, dx: float, dy: float, direction: tuple[int, int]) -> Box:
    width = CHARACTER_WIDTH * len(label.text)
    left = label.anchor[0] + dx - width * (1 - direction[0]) / 2
    top = label.anchor[1] + dy - LINE_HEIGHT * (1 - direction[1]) / 2
    return Box(left, top, left + width, top + LINE_HEIGHT)


def _is_outside(box: Box, size: tuple[float, float]) -> bool:
    return box.left < 0 or box.top < 0 or box.right > size[0] or box.bottom > size[1]
