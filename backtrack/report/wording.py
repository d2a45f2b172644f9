"""How numbers, points and roles read, the same in tables, tooltips and axis titles.

Shares and points have one decimal; everything else has four significant digits, an interval as
many decimals at each end as its estimate. A number that is not finite reads as a dash.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backtrack.records import Axis, Interval, ObjectiveInfo
    from backtrack.records.selection import Candidate, Difference, Selection

ONE_DECIMAL = frozenset({"%", "points"})
NO_NUMBER = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
SIGNIFICANT_DIGITS = 4
MAX_DECIMALS = 8


def number(value: float, unit: str, *, is_signed: bool = False) -> str:
    """`value`, already in `unit`, without the unit."""
    return _fixed(value, _decimals([value], unit), is_signed=is_signed)


def interval(value: Interval, unit: str, *, is_signed: bool = False) -> str:
    """The estimate and its interval: `82.1 [78.9, 85.0]`."""
    decimals = _decimals((value.estimate, value.low, value.high), unit)
    estimate = _fixed(value.estimate, decimals, is_signed=is_signed)
    low, high = (_fixed(end, decimals, is_signed=False) for end in (value.low, value.high))
    return f"{estimate} [{low}, {high}]"


def score(value: float, objective: ObjectiveInfo) -> str:
    """An objective's score with its unit; fractions as percent."""
    return with_unit(value, objective.unit)


def with_unit(value: float, unit: str) -> str:
    """`value` in an objective's or an axis's unit, which is named behind it."""
    if unit == "fraction":
        value, unit = 100 * value, "%"
    return f"{number(value, unit)}%" if unit == "%" else f"{number(value, unit)} {unit}"


def share(value: float) -> str:
    """A share as percent; one that is there but rounds to nothing says so."""
    return "<0.1%" if 0 < value < 0.0005 else f"{number(100 * value, '%')}%"


def difference_unit(axis: Axis) -> str:
    """Unit of a difference along an axis: that of two shares is points."""
    return "points" if axis.unit == "%" else axis.unit


def leaning(value: Interval, axis: Axis | None = None) -> str:
    """What an interval shows: `better`, `worse` or `unclear`. Without an axis more is better."""
    if not (value.low > 0 or value.high < 0):
        return "unclear"
    is_more = value.low > 0
    return "better" if is_more == (axis is None or axis.direction == "maximize") else "worse"


def bytes_text(num_bytes: int) -> str:
    """A size in decimal units."""
    size = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def duration_text(seconds: float) -> str:
    """A duration in the largest unit of which it has at least one."""
    for unit, length in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def constraints_text(selection: Selection) -> tuple[str, ...]:
    """One phrase a constraint; nothing where none was asked for."""
    bounds = selection.constraints
    phrases = []
    if bounds.max_general_drop is not None:
        drop = number(bounds.max_general_drop, "points")
        phrases.append(f"general at most {drop} points below the base")
    if bounds.min_target is not None:
        phrases.append(f"target at least {number(bounds.min_target, 'points')} points")
    if bounds.keep_gain is not None:
        phrases.append(f"at least {bounds.keep_gain:.0%} of the final checkpoint's gain kept")
    return tuple(phrases)


def marks(selection: Selection, candidate: Candidate) -> tuple[str, ...]:
    """What there is to say about a point in a word each, most important first."""
    said = {
        "chosen": candidate.point == selection.chosen.canonical,
        "base": candidate.point.is_base,
        "final": candidate.point == selection.final.canonical,
        "front": candidate.is_on_front,
        "tied": candidate.is_tied,
        "misses a constraint": not candidate.is_feasible,
    }
    return tuple(word for word, is_so in said.items() if is_so)


def settled(difference: Difference) -> str:
    """Items a role that would settle a difference."""
    count = difference.items_to_settle
    return NO_NUMBER if count is None else f"{count:,}"


def _decimals(values: Iterable[float], unit: str) -> int:
    if unit in ONE_DECIMAL:
        return 1
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    if largest == 0:
        return 1
    return min(MAX_DECIMALS, max(0, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(largest))))


def _fixed(value: float, decimals: int, *, is_signed: bool) -> str:
    if not math.isfinite(value):
        return NO_NUMBER
    text = f"{abs(value):,.{decimals}f}"
    if not any(digit in "123456789" for digit in text):
        return text
    return f"{MINUS if value < 0 else '+' if is_signed else ''}{text}"
