"""Which items a point wins and loses against another, with what the model said. No model.

Items are those that both points were measured on under the selection's setting: the report items
if there are any, else the selection items.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from backtrack.errors import SelectionError
from backtrack.records.answers import ComparedItem, ComparedObjective
from backtrack.selection.measure.answers import read_answers, read_questions
from backtrack.selection.stats.utility import to_points

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from backtrack.point import Point
    from backtrack.records import Measurement, ObjectiveInfo, Split
    from backtrack.records.answers import Answer
    from backtrack.records.selection import Selection, Yardstick
    from backtrack.run.directory import Run

    Lines = Sequence[Measurement]

_NO_GAP = 1e-9


def compare_points(
    run: Run, selection: Selection, points: Sequence[Point], max_items: int | None = None
) -> tuple[ComparedObjective, ...]:
    """List the items that the second point wins and loses against the first, by objective.

    Args:
        run: The run.
        selection: Its selection.
        points: Two points or more; those after the second are shown beside them.
        max_items: Items listed as won, and as lost, of each objective; None lists all.

    Returns:
        The objectives, that which lost most first.

    Raises:
        SelectionError: A point was not measured on any item of an objective.
        RunError: Kept answers are damaged.
    """
    canonical = [point.canonical for point in points]
    compared = [
        _compare(run, selection, info, canonical, max_items) for info in selection.objectives
    ]
    return tuple(sorted(compared, key=lambda objective: objective.change))


def _compare(
    run: Run,
    selection: Selection,
    info: ObjectiveInfo,
    points: Sequence[Point],
    max_items: int | None,
) -> ComparedObjective:
    split, lines = _shared_lines(_lines_of(run, selection, info), info, points)
    scores = [_scores(lines[point]) for point in points]
    items = sorted(set.intersection(*map(set, scores)))
    gains = _gains(scores[0], scores[1], items, selection.yardsticks[info.name])
    lost = sorted((i for i in items if gains[i] < -_NO_GAP), key=lambda i: (gains[i], i))
    won = sorted((i for i in items if gains[i] > _NO_GAP), key=lambda i: (-gains[i], i))
    questions = read_questions(run, info)
    answers = [_answers(run, lines[point]) for point in points]

    def records(chosen: Iterable[str]) -> tuple[ComparedItem, ...]:
        return tuple(
            ComparedItem(
                item=item,
                question=questions.get(item),
                scores=tuple(each[item] for each in scores),
                answers=tuple(each.get(item) for each in answers),
            )
            for item in chosen
        )

    return ComparedObjective(
        objective=info.name,
        role=info.role,
        unit=info.unit,
        split=split,
        num_items=len(items),
        means=tuple(sum(each[i] for i in items) / len(items) for each in scores),
        change=sum(gains.values()) / len(items),
        num_lost=len(lost),
        num_won=len(won),
        lost=records(lost[:max_items]),
        won=records(won[:max_items]),
    )


def _lines_of(run: Run, selection: Selection, info: ObjectiveInfo) -> list[Measurement]:
    """Measurements of an objective under the selection's setting, of checkpoints as they are."""
    setting = selection.settings.get(info.name)
    return [
        m
        for m in run.measurements()
        if m.objective.name == info.name
        and m.setting == setting
        and m.checkpoint == ("" if m.point.is_base else run.checkpoint_digest(m.point))
    ]


def _shared_lines(
    lines: Lines, info: ObjectiveInfo, points: Sequence[Point]
) -> tuple[Split, Mapping[Point, Lines]]:
    """The split on which all points share items, and their measurements on it."""
    splits: tuple[Split, Split] = ("report", "selection")
    for split in splits:
        by_point: dict[Point, list[Measurement]] = defaultdict(list)
        for m in lines:
            if m.split == split:
                by_point[m.point.canonical].append(m)
        if all(point in by_point for point in points):
            return split, by_point
    measured = {m.point.canonical for m in lines}
    missing = next((point for point in points if point not in measured), points[-1])
    raise SelectionError(
        f"{missing} was not measured on {info.name}, or on other items than the other points. "
        "`backtrack select` measures base, choice and final checkpoint on the same items; "
        "selection.json lists the other points."
    )


def _gains(
    first: Mapping[str, float],
    second: Mapping[str, float],
    items: Sequence[str],
    yardstick: Yardstick,
) -> dict[str, float]:
    """What each item gains from the first point to the second, in points."""
    scores = np.array([[each[item] for item in items] for each in (first, second)])
    before, after = to_points(scores, yardstick)
    return dict(zip(items, (after - before).tolist(), strict=True))


def _scores(lines: Lines) -> dict[str, float]:
    return {item: score for m in lines for item, score in zip(m.item_ids, m.scores, strict=True)}


def _answers(run: Run, lines: Lines) -> dict[str, Answer]:
    return {item: answer for m in lines for item, answer in read_answers(run, m).items()}
