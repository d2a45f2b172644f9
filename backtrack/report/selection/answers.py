"""The page's items won and lost, with what was asked and what the model said at each point.

The page holds a sample, so that it can be sent: the items that lost and won most of each
objective, and the beginning of what was said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backtrack import formatting
from backtrack.formatting import visible
from backtrack.report import wording

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.point import Point
    from backtrack.records.answers import ComparedItem, ComparedObjective, Comparison
    from backtrack.records.selection import Selection

MAX_CHARACTERS = 800
"""Of a prompt that are shown, its last, and of an answer, its first."""

Values = dict[str, Any]


def section(compared: Comparison | None, selection: Selection) -> Values | None:
    """Items of each objective by outcome, the objective that lost most first.

    Args:
        compared: What was compared, if anything was.
        selection: Names the points.

    Returns:
        None if nothing was kept of any item.
    """
    if compared is None:
        return None
    points = [_name(point, selection) for point in compared.points]
    objectives = [_objective(each, points) for each in compared.objectives if _is_kept(each)]
    return {"points": points, "objectives": objectives} if objectives else None


def _name(point: Point, selection: Selection) -> str:
    """What a point is called on the page: base, chosen or final."""
    if point == selection.base.canonical:
        return "base"
    return "chosen" if point == selection.chosen.canonical else "final"


def _is_kept(compared: ComparedObjective) -> bool:
    items = (*compared.lost, *compared.won, *compared.both_wrong)
    return any(item.question or any(item.answers) for item in items)


def _objective(compared: ComparedObjective, points: Sequence[str]) -> Values:
    means = [wording.with_unit(mean, compared.unit) for mean in compared.means]
    outcomes = (
        ("lost", compared.num_lost, compared.lost),
        ("won", compared.num_won, compared.won),
        ("both wrong", compared.num_both_wrong, compared.both_wrong),
    )
    return {
        "name": visible(compared.objective),
        "role": compared.role,
        "means": list(zip(points, means, strict=True)),
        "change": wording.number(compared.change, formatting.POINTS, is_signed=True),
        "num_items": f"{compared.num_items:,} {compared.split} items",
        "outcomes": [
            {
                "name": name,
                "num": f"{num:,}",
                "sample": f"{len(items)} of {num:,}" if len(items) < num else "",
                "shown": [_item(item, points, compared.unit) for item in items],
            }
            for name, num, items in outcomes
            if items
        ],
    }


def _item(item: ComparedItem, points: Sequence[str], unit: str) -> Values:
    question = item.question
    said = zip(points, item.scores, item.answers, strict=True)
    return {
        "id": visible(item.item),
        "prompt": _end(visible(question.prompt)) if question else "",
        "gold": _start(visible(question.gold)) if question else "",
        "said": [
            {
                "point": point,
                "score": wording.with_unit(score, unit),
                "texts": [
                    _start(visible(text.strip())) for text in formatting.said(question, answer)
                ],
            }
            for point, score, answer in said
        ],
    }


def _start(text: str) -> str:
    return (
        text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}\N{HORIZONTAL ELLIPSIS}"
    )


def _end(text: str) -> str:
    """The end of a text, where the question is: what leads to it comes before."""
    return (
        text if len(text) <= MAX_CHARACTERS else f"\N{HORIZONTAL ELLIPSIS}{text[-MAX_CHARACTERS:]}"
    )
