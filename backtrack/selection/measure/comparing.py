"""Which items a point wins and loses against another, with what the model said. No model.

Items are those that both points were measured on under the selection's setting: the report items
if there are any, else the selection items.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from backtrack.errors import RunError, SelectionError
from backtrack.records.answers import ComparedItem, ComparedObjective, Comparison
from backtrack.selection.measure.answers import FOLDER, read_answers, read_questions
from backtrack.selection.stats.utility import to_points

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from backtrack.point import Point
    from backtrack.records import Measurement, ObjectiveInfo, Split
    from backtrack.records.selection import Selection, Yardstick
    from backtrack.run.directory import Run

    Lines = Sequence[Measurement]

_NO_GAP = 1e-9
_NUM_OUTCOMES = 3
"""Lost, won, and wrong at both."""

logger = logging.getLogger(__name__)


def compare_points(
    run: Run, selection: Selection, points: Sequence[Point], max_items: int | None = None
) -> Comparison:
    """List the items that the second point wins and loses against the first, by objective.

    Args:
        run: The run.
        selection: Its selection.
        points: Two points or more; those after the second are shown beside them.
        max_items: Items listed as won, as lost, and as wrong at both points, of each objective;
            None lists all.

    Raises:
        SelectionError: A point was not measured on any item of an objective.
        RunError: Kept answers are damaged.
    """
    canonical = [point.canonical for point in points]
    compared = [
        _compare(run, selection, info, canonical, max_items) for info in selection.objectives
    ]
    by_change = sorted(compared, key=lambda objective: objective.change)
    return Comparison(points=tuple(canonical), objectives=tuple(by_change))


def compare_ends(run: Run, selection: Selection, max_items: int) -> Comparison | None:
    """Compare base, choice and final checkpoint, as far as the answers were kept.

    Args:
        run: The run.
        selection: Its selection.
        max_items: Items listed at most, over all objectives.

    Returns:
        None if no answers were kept, or they cannot be compared or read, which is logged.
    """
    if not (run.path / FOLDER).is_dir():
        return None
    points = dict.fromkeys(
        point.canonical for point in (selection.base, selection.chosen, selection.final)
    )
    each = max(max_items // (_NUM_OUTCOMES * len(selection.objectives)), 1)
    try:
        return compare_points(run, selection, list(points), each)
    except (SelectionError, RunError) as error:
        logger.warning("The page shows no answers: %s", error)
        return None


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
    before, after = _points_by_item(scores[:2], items, selection.yardsticks[info.name])
    gains = {item: after[item] - before[item] for item in items}
    lost = sorted((i for i in items if gains[i] < -_NO_GAP), key=lambda i: (gains[i], i))
    won = sorted((i for i in items if gains[i] > _NO_GAP), key=lambda i: (-gains[i], i))
    has_worst = selection.yardsticks[info.name].zero is not None
    both_wrong = [i for i in items if has_worst and max(before[i], after[i]) <= _NO_GAP]
    questions = read_questions(run, info)
    answers = [read_answers(run, lines[point]) for point in points]

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
        num_both_wrong=len(both_wrong),
        lost=records(lost[:max_items]),
        won=records(won[:max_items]),
        both_wrong=records(both_wrong[:max_items]),
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


def _points_by_item(
    scores: Sequence[Mapping[str, float]], items: Sequence[str], yardstick: Yardstick
) -> list[dict[str, float]]:
    """What each item counts at each of two points, in points."""
    found = to_points(np.array([[each[item] for item in items] for each in scores]), yardstick)
    return [dict(zip(items, row, strict=True)) for row in found.tolist()]


def _scores(lines: Lines) -> dict[str, float]:
    return {item: score for m in lines for item, score in zip(m.item_ids, m.scores, strict=True)}
