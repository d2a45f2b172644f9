"""Which points are looked at when none are named, and what each of them has forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack.point import Point
from backtrack.records.diagnosis import Forgetting, mean_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backtrack.records.diagnosis import ModuleGeometry
    from backtrack.records.selection import Candidate, Selection
    from backtrack.run.directory import Run

PATH_ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Strengths looked at along the path where nothing was measured."""
MAX_PATH = 16
"""Measured points looked at, at most; the earliest measured first, anchors among them."""


def distinct(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points, each once, spelled canonically."""
    return tuple(dict.fromkeys(point.canonical for point in points))


def default_points(run: Run) -> tuple[Point, ...]:
    """The final checkpoint, and the chosen point where there is one that is not the base."""
    selection = run.selection()
    chosen = [selection.chosen] if selection and not selection.chosen.is_base else []
    return distinct([run.final, *chosen])


def path_points(run: Run) -> tuple[Point, ...]:
    """Points along the path: those measured on all selection items, else a grid of alphas."""
    selection = run.selection()
    if selection is None:
        return tuple(Point(step=run.final.step, alpha=alpha) for alpha in PATH_ALPHAS)
    whole = [c.point for c in selection.candidates if c.share == 1 and not c.point.is_base]
    there = [point for point in distinct(whole) if point.step in run.steps]
    return tuple(sorted(there[:MAX_PATH], key=lambda p: (p.step, p.alpha)))


def forgetting(
    selection: Selection | None, points: Sequence[Point], lines: Sequence[ModuleGeometry]
) -> tuple[Forgetting, ...]:
    """What each looked-at point has lost, where it was measured on all selection items."""
    if selection is None:
        return ()
    general = {c.point: general_points(selection, c) for c in selection.candidates if c.share == 1}
    base = general.get(Point.base())
    if base is None:
        return ()
    return tuple(
        Forgetting(
            name=str(point),
            point=point,
            forgetting=base - general[point],
            metrics=mean_metrics(line for line in lines if line.point == point),
        )
        for point in points
        if point in general and not point.is_base
    )


def general_points(selection: Selection, candidate: Candidate) -> float:
    """A candidate's general score in points, by the selection's yardsticks."""
    members = [o for o in selection.objectives if o.role == "general"]
    total = sum(o.weight for o in members)
    found = 0.0
    for o in members:
        ends = selection.yardsticks[o.name]
        width = ends.hundred - ends.zero
        share = (candidate.scores[o.name] - ends.zero) / width if width else 1.0
        found += 100 * share * o.weight / total
    return found


def notes(selection: Selection | None, lines: Sequence[ModuleGeometry]) -> Iterator[str]:
    """Cautions a reader should see."""
    if selection is None:
        yield (
            "Nothing was measured on this run yet, so how the metrics go with forgetting is not "
            "known: `backtrack select`, then diagnose again."
        )
    else:
        yield (
            "Points of one path are no independent sample: their correlations describe this path, "
            "and nearly any metric that grows with alpha goes with whatever else does."
        )
    rough = [line.spectrum.error for line in lines if line.spectrum and line.spectrum.error]
    if rough:
        yield (
            f"Spectra of {len(rough)} lines are of leading directions only, found by random "
            f"projection: singular values off by up to {max(rough):.1g} of the largest."
        )
