"""Default points of a diagnosis, and how much each point has forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack.formatting import command
from backtrack.point import Point
from backtrack.records.diagnosis import Forgetting, mean_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from backtrack.records.diagnosis import ModuleGeometry
    from backtrack.records.selection import Selection
    from backtrack.run.directory import Run

PATH_ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Strengths along the path if nothing was measured."""
MAX_PATH = 16
"""Most measured points along the path; the first measured, the anchors among them, are taken."""


def distinct(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points in canonical form, without repetitions."""
    return tuple(dict.fromkeys(point.canonical for point in points))


def default_points(run: Run) -> tuple[Point, ...]:
    """The final checkpoint, and the chosen point if there is one other than the base."""
    selection = run.selection()
    chosen = [selection.chosen] if selection and not selection.chosen.is_base else []
    return distinct([run.final, *chosen])


def path_points(run: Run) -> tuple[Point, ...]:
    """Points along the path: those measured on all selection items, or else a grid of alphas."""
    selection = run.selection()
    if selection is None:
        return tuple(Point(step=run.final.step, alpha=alpha) for alpha in PATH_ALPHAS)
    whole = [c.point for c in selection.candidates if c.share == 1 and not c.point.is_base]
    available = [point for point in distinct(whole) if point.step in run.steps]
    return tuple(sorted(available[:MAX_PATH], key=lambda p: (p.step, p.alpha)))


def forgetting(
    selection: Selection | None,
    points: Sequence[Point],
    lines: Sequence[ModuleGeometry],
    divergences: Callable[[Point], Mapping[str, float]],
) -> tuple[Forgetting, ...]:
    """Forgetting of each diagnosed point that was measured on all selection items.

    Args:
        selection: The run's selection, if there is one.
        points: The diagnosed points.
        lines: Their lines.
        divergences: Gives a point's divergences from the base as further metrics.
    """
    if selection is None:
        return ()
    # Selections of an older version have a mean loss as the general score.
    sign = 1 if selection.axes["general"].direction == "maximize" else -1
    general = {c.point: sign * c.general for c in selection.candidates if c.share == 1}
    base = general.get(Point.base())
    if base is None:
        return ()
    return tuple(
        Forgetting(
            name=str(point),
            point=point,
            forgetting=base - general[point],
            metrics=mean_metrics(line for line in lines if line.point == point)
            | dict(divergences(point)),
        )
        for point in points
        if point in general and not point.is_base
    )


def notes(
    run: Path, selection: Selection | None, lines: Sequence[ModuleGeometry]
) -> Iterator[str]:
    """Cautions for the reader."""
    if selection is None:
        yield (
            "Nothing is measured on this run yet, so forgetting and its correlation with the "
            f"metrics are unknown: run {command('select', run)}, then diagnose again."
        )
    else:
        yield (
            "Points of one path are not an independent sample: their correlations describe this "
            "path only, and nearly all metrics that grow with alpha correlate with each other."
        )
    rough = [line.spectrum.error for line in lines if line.spectrum and line.spectrum.error]
    if rough:
        yield (
            f"Spectra of {len(rough)} lines have leading directions only, computed by random "
            f"projection: singular values are off by up to {max(rough):.1g} of the largest."
        )
