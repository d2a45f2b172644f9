"""Numbers, units and comparisons as the pages write them: with a typographic minus sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack import formatting
from backtrack.formatting import NO_NUMBER, PERCENT, POINTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backtrack.records import Axis, Interval, ObjectiveInfo
    from backtrack.records.selection import Difference, ObjectiveBound, Selection

MINUS = "\N{MINUS SIGN}"


def number(value: float, unit: str, *, is_signed: bool = False) -> str:
    """`value`, already in `unit`, without the unit."""
    return formatting.number(value, unit, is_signed=is_signed).replace("-", MINUS)


def interval(value: Interval, unit: str, *, is_signed: bool = False, factor: float = 1.0) -> str:
    """An estimate with its interval, without the unit; see `formatting.interval`."""
    text = formatting.interval(value, unit, is_signed=is_signed, factor=factor)
    return text.replace("-", MINUS)


def with_unit(value: float, unit: str) -> str:
    """`value` in an objective's or an axis's unit, followed by the unit; fractions as percent."""
    shown, factor = formatting.shown_unit(unit)
    text = number(factor * value, shown)
    return f"{text}%" if shown == PERCENT else f"{text} {shown}"


def difference_unit(axis: Axis) -> str:
    """Unit of a difference along an axis: points for percentages."""
    return POINTS if axis.unit == PERCENT else axis.unit


def comparison(value: Interval, axis: Axis | None = None) -> str:
    """Which side of zero a difference's interval lies on: `better`, `worse` or `unclear`.

    Args:
        value: The difference.
        axis: Axis of the two scores; without it more is better.
    """
    if not (value.low > 0 or value.high < 0):
        return "unclear"
    is_more = value.low > 0
    return "better" if is_more == (axis is None or axis.direction == "maximize") else "worse"


def bounds_text(selection: Selection) -> tuple[str, ...]:
    """One phrase per bound on a role's or an objective's score; empty without any."""
    bounds = selection.constraints
    phrases = []
    if bounds.max_general_drop is not None:
        drop = number(bounds.max_general_drop, POINTS)
        phrases.append(f"general at most {drop} points below the base")
    if bounds.min_target is not None:
        phrases.append(f"target at least {number(bounds.min_target, POINTS)} points")
    if bounds.keep_gain is not None:
        phrases.append(f"at least {bounds.keep_gain:.0%} of the final checkpoint's gain kept")
    for objective in selection.objectives:
        phrases += _objective_bounds(objective, bounds.objectives.get(objective.name))
    if phrases:
        phrases[-1] += f" (shown with {bounds.bound_confidence:.4g} confidence)"
    return tuple(phrases)


def _objective_bounds(objective: ObjectiveInfo, bound: ObjectiveBound | None) -> Iterator[str]:
    if bound is None:
        return
    unit = formatting.shown_unit(objective.unit)[0]
    is_more = objective.direction == "maximize"
    if bound.max_drop is not None:
        side = "below" if is_more else "above"
        yield f"{objective.name} at most {number(bound.max_drop, unit)} {unit} {side} the base"
    if bound.worst is not None:
        least = "least" if is_more else "most"
        yield f"{objective.name} at {least} {number(bound.worst, unit)} {unit}"


def items_to_settle(difference: Difference) -> str:
    """Items per role that would make a difference clear."""
    count = difference.items_to_settle
    return NO_NUMBER if count is None else f"{count:,}"
