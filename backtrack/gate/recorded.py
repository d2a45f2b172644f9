"""Our own measurements as a side of a gate: a file of them, or a run whose items are all there."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from backtrack.errors import RunError, UsageError
from backtrack.gate.sides import RecordedScores, RecordedSide
from backtrack.records import Measurement
from backtrack.run.files import read_lines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backtrack.point import Point
    from backtrack.records import ObjectiveInfo


def read_measurements(path: Path, point: Point | None) -> RecordedSide:
    """Scores of one point from a file of measurements, such as a run's `measurements.jsonl`.

    Report items count where there are any, since no search has seen them; else all. Later scores
    win.

    Args:
        path: The file.
        point: The point; None where the file has one only.

    Raises:
        RunError: The file is damaged or has no measurement.
        UsageError: The point is not in the file, or none is named and there are several.
    """
    lines = list(read_lines(path, Measurement))
    if not lines:
        raise RunError(f"{path} has no measurement.")
    points = list(dict.fromkeys(m.point.canonical for m in lines))
    named = points[0] if point is None and len(points) == 1 else point
    if named is None or named.canonical not in points:
        listed = ", ".join(_written(each) for each in points[:8])
        asked = "several points: name one" if named is None else f"no {named}"
        raise UsageError(f"{path} has {asked}, as {path}@POINT. There are {listed}.")
    lines = [m for m in lines if m.point.canonical == named.canonical]
    name = f"{path}@{_written(named)}" if len(points) > 1 else str(path)
    return RecordedSide(name, _by_objective(lines))


def _written(point: Point) -> str:
    end = "" if point.profile == "uniform" else f":{point.profile}"
    return "base" if point.is_base else f"{point.step}:{point.alpha:g}{end}"


def _by_objective(lines: Sequence[Measurement]) -> dict[str, RecordedScores]:
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    infos: dict[str, ObjectiveInfo] = {}
    has_report = {m.objective.name for m in lines if m.split == "report"}
    for m in lines:
        name = m.objective.name
        if m.split == "report" or name not in has_report:
            if name in infos and infos[name].fingerprint != m.objective.fingerprint:
                scores[name].clear()
            infos[name] = m.objective
            scores[name].update(zip(m.item_ids, m.scores, strict=True))
    return {name: RecordedScores(infos[name], by_item) for name, by_item in scores.items()}
