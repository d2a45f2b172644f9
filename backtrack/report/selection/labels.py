"""Labels in the charts of a selection: base, chosen, final, and steps and alphas on paths."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backtrack.point import Point
from backtrack.report.selection.drawing import padded
from backtrack.report.selection.label_positions import Label, PlotArea, position_labels
from backtrack.report.selection.mark_kinds import BASE, FINAL

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from backtrack.records import Role
    from backtrack.report.selection.drawing import Drawing, Row
    from backtrack.report.selection.label_positions import Pixel

CHOICE = "chosen"
MAX_PATH_LABELS = 24
"""Labels along the paths; with more, every second one is left out, and so on."""


@dataclass(frozen=True)
class PointLabel:
    """A text next to a candidate.

    Attributes:
        index: The candidate.
        text: What it says.
        is_needed: Shown even if it covers something.
    """

    index: int
    text: str
    is_needed: bool


def plane_labels(
    drawing: Drawing, size: tuple[float, float], *, has_path_labels: bool, has_choice: bool
) -> list[Row]:
    """Rows of the plane's labels that found a free position.

    Args:
        drawing: What is drawn.
        size: Width and height of the plane in pixels.
        has_path_labels: Label steps and alphas too, and name the chosen point.
        has_choice: Label the chosen point; otherwise the page does.
    """
    area = PlotArea(drawing.axis_ends("target"), drawing.axis_ends("general"), size)

    def pixel(index: int) -> Pixel:
        candidate = drawing.candidate(index)
        return area.pixel(candidate.target, candidate.general)

    paths = [drawing.training, *drawing.curves]
    lines = [
        [area.pixel(row["target"], row["general"]) for row in drawing.lines([path])]
        for path in paths
    ]
    for row in drawing.cross():
        ends = (("target", "general"), ("target_end", "general_end"))
        lines.append([area.pixel(row[x], row[y]) for x, y in ends])
    is_short = not has_path_labels
    labels = end_labels(drawing, drawing.ids, is_short=is_short, has_choice=has_choice)
    labels += path_labels(drawing) if has_path_labels else []
    return _positioned(drawing, labels, pixel, drawing.ids, lines, size)


def panel_labels(
    drawing: Drawing, role: Role, size: tuple[float, float], *, is_short: bool, has_choice: bool
) -> list[Row]:
    """Rows of a panel's labels, see `plane_labels`."""
    ids = drawing.alpha_ids()
    low, high = alpha_domain(drawing)
    area = PlotArea((low, high), drawing.axis_ends(role, ids), size)

    def pixel(index: int) -> Pixel:
        candidate = drawing.candidate(index)
        return area.pixel(candidate.point.alpha, getattr(candidate, role))

    lines = [
        [area.pixel(row["alpha"], row[role]) for row in drawing.lines([curve])]
        for curve in drawing.curves
    ]
    if drawing.chosen is not None:
        x, _ = pixel(drawing.chosen)
        lines.append([(x, 0.0), (x, size[1])])
    labels = end_labels(drawing, ids, is_short=is_short, has_choice=has_choice)
    return _positioned(drawing, labels, pixel, ids, lines, size)


def alpha_domain(drawing: Drawing) -> list[float]:
    """Lowest and highest alpha of the panels along alpha."""
    return padded([0.0, 1.0, *(drawing.candidate(i).point.alpha for i in drawing.alpha_ids())])


def end_labels(
    drawing: Drawing, ids: Container[int], *, is_short: bool = False, has_choice: bool = True
) -> list[PointLabel]:
    """Labels of chosen, base and final among `ids`; one text if two of them are one point."""
    points = {BASE: Point.base(), FINAL: drawing.selection.final}
    points = {CHOICE: drawing.selection.chosen, **points} if has_choice else points
    words: dict[int, list[str]] = {}
    for word, point in points.items():
        index = drawing.index(point.canonical)
        if index is not None and index in ids:
            words.setdefault(index, []).append(word)
    labels = []
    for index, names in words.items():
        text = " = ".join(names)
        if names == [CHOICE] and not is_short:
            text = f"chosen: {drawing.candidate(index).point}"
        labels.append(PointLabel(index, text, is_needed=True))
    return labels


def path_labels(drawing: Drawing) -> list[PointLabel]:
    """Steps along the training path and alphas along the final step's curve."""
    labelled = {label.index for label in end_labels(drawing, drawing.ids)}
    steps = [(i, f"step {drawing.candidate(i).point.step}") for i in drawing.training.ids]
    curve = drawing.curves[0].ids if drawing.curves else ()
    alphas = [(i, f"alpha {drawing.candidate(i).point.alpha:g}") for i in curve]
    alphas = [(i, text) for i, text in alphas if 0 < drawing.candidate(i).point.alpha != 1]
    texts = [(i, text) for i, text in (*steps, *alphas) if i not in labelled]
    every = math.ceil(len(texts) / MAX_PATH_LABELS) or 1
    return [PointLabel(i, text, is_needed=False) for i, text in texts[::every]]


def _positioned(
    drawing: Drawing,
    labels: Sequence[PointLabel],
    pixel: Callable[[int], Pixel],
    ids: Sequence[int],
    lines: Sequence[Sequence[Pixel]],
    size: tuple[float, float],
) -> list[Row]:
    """Rows of the labels that got a position, among the marks of `ids` and `lines`."""
    texts = [_label(label, pixel(label.index)) for label in labels]
    positions = position_labels(texts, [pixel(i) for i in ids], lines, size)
    return [
        drawing.row(label.index, "")
        | {"text": label.text, "is_needed": label.is_needed, **dataclasses.asdict(position)}
        for label, position in zip(labels, positions, strict=True)
        if position is not None
    ]


def _label(label: PointLabel, anchor: Pixel) -> Label:
    gap = 13.0 if label.is_needed else 9.0
    return Label(label.text, anchor, is_needed=label.is_needed, gap=gap)
