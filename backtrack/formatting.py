"""Numbers, sizes, durations, marks and values as text, the same everywhere they are shown.

Percentages and points have one decimal, correlations two, everything else four significant
digits; the ends of an interval have as many decimals as its estimate. A number that is not finite
is shown as a dash. Sizes are in decimal units.
"""

from __future__ import annotations

import math
import re
import reprlib
import shlex
from typing import TYPE_CHECKING

from backtrack.records import FRACTION, ROLES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backtrack.records import Interval
    from backtrack.records.answers import Answer, Question
    from backtrack.records.selection import BaselineRow, Candidate, Selection

POINTS = "points"
PERCENT = "%"
CORRELATION = "correlation"
DECIMALS = {PERCENT: 1, POINTS: 1, CORRELATION: 2}
NO_NUMBER = "\N{EN DASH}"
SIGNIFICANT_DIGITS = 4
MAX_DECIMALS = 8
MAX_SHOWN = 80
"""Most characters of a value or key that a message repeats."""

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, those that turn the direction of text, and what no
encoding holds."""
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 3
_BRIEF.maxstring = _BRIEF.maxlong = _BRIEF.maxother = 60


def one_line(error: Exception) -> str:
    """The text of a library's error in one line of at most 300 characters, as a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)[:300] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."


def command(*arguments: object) -> str:
    """A command of this package in backticks, to be pasted into a shell: names are quoted."""
    return f"`{shlex.join(['backtrack', *map(str, arguments)])}`"


def number(value: float, unit: str, *, is_signed: bool = False) -> str:
    """`value`, already in `unit`, without the unit: `82.1`."""
    return _fixed(value, _decimals([value], unit), is_signed=is_signed)


def interval(
    value: Interval,
    unit: str,
    *,
    is_signed: bool = False,
    has_unit: bool = False,
    factor: float = 1.0,
) -> str:
    """An estimate with its interval: `82.1 [78.9, 85.0]`.

    Args:
        value: The estimate with the ends of its interval.
        unit: Unit of the text.
        is_signed: Write a plus before positive numbers, for differences.
        has_unit: Write the unit after the estimate: `+1.2 points [-0.3, +2.7]`.
        factor: Unit of `value` over `unit`: 100 from fractions to percent.
    """
    numbers = [factor * number for number in (value.estimate, value.low, value.high)]
    decimals = _decimals(numbers, unit)
    estimate, low, high = (_fixed(number, decimals, is_signed=is_signed) for number in numbers)
    return f"{estimate}{f' {unit}' if has_unit else ''} [{low}, {high}]"


def share(value: float) -> str:
    """A share as percent; a positive one that rounds to zero is `<0.1%`."""
    return "<0.1%" if 0 < value < 0.0005 else f"{number(100 * value, PERCENT)}%"


def shown_unit(unit: str) -> tuple[str, float]:
    """The unit an objective's scores are shown in, and the factor to it: fractions as percent."""
    return (PERCENT, 100.0) if unit == "fraction" else (unit, 1.0)


def byte_size(num_bytes: float) -> str:
    """A number of bytes in three digits: `17.4 MB`."""
    if num_bytes < 1000:
        return f"{num_bytes:.0f} bytes"
    size = num_bytes / 1000
    for unit in ("kB", "MB", "GB"):
        if size < 999.5:  # above, three digits would be written as 1e+03
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def duration(seconds: float) -> str:
    """`40 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def how_chosen(selection: Selection) -> str:
    """How the point was chosen, in one sentence: which part of the rule decided."""
    if selection.is_cautious:
        return (
            "Chosen with caution: the base wherever the selection items cannot tell it from the "
            "point of highest smoothed utility."
        )
    chosen = selection.candidate(selection.chosen)
    tied = [candidate for candidate in selection.candidates if candidate.is_tied]
    top = max(tied, key=lambda candidate: candidate.smoothed, default=chosen)
    if top.point == chosen.point:
        return "The choice is the point of highest smoothed utility."
    lead = top.smoothed - chosen.smoothed
    if chosen.point.is_base:
        return (
            f"The base rule decided: {top.point}, of highest smoothed utility, leads the base by "
            f"{lead:.2f} points, which is hardly more than luck."
        )
    return (
        f"The quarter-point rule decided: {top.point} has the highest smoothed utility, by "
        f"{lead:.2f} points, and of the points at most 0.25 below the choice is nearest the base."
    )


def before_and_after(selection: Selection) -> str:
    """Both roles from base to choice on the report items, such as `target 7.7 -> 73.3, ...`."""
    before, after = (selection.report[name] for name in ("base", "chosen"))
    pairs = {
        role: (getattr(before, role).estimate, getattr(after, role).estimate) for role in ROLES
    }
    changes = []
    for role, values in pairs.items():
        unit = selection.axes[role].unit
        changes.append(f"{role} {' -> '.join(number(value, unit) for value in values)}")
    return ", ".join(changes)


def lost_most(selection: Selection) -> str:
    """The objective whose mean fell most in percent points from base to choice; empty if none did.

    Only objectives that are fractions are compared: other units have no common scale.
    """
    before, after = (selection.report[name].scores for name in ("base", "chosen"))
    drops = {
        o.name: 100 * (before[o.name] - after[o.name])
        for o in selection.objectives
        if o.unit == FRACTION and o.direction == "maximize"
    }
    name = max(drops, key=lambda name: drops[name], default="")
    if not name or drops[name] <= 0:
        return ""
    values = (number(100 * scores[name], "%") for scores in (before, after))
    return f"{name} lost most: {' -> '.join(values)}"


def how_claimed(selection: Selection) -> str:
    """What is claimed of the chosen point, in one sentence."""
    return (
        f"Claimed is only what the report items show at {selection.level:.0%}, for all "
        "comparisons together."
    )


def point_marks(selection: Selection, candidate: Candidate) -> tuple[str, ...]:
    """What holds of a candidate, one mark each, most important first."""
    marks = {
        "chosen": candidate.point == selection.chosen.canonical,
        "base": candidate.point.is_base,
        "final": candidate.point == selection.final.canonical,
        "front": candidate.is_on_front,
        "tied": candidate.is_tied and selection.has_ties,
        "misses a bound": not candidate.is_feasible,
    }
    return tuple(mark for mark, holds in marks.items() if holds)


def missed(row: BaselineRow) -> str:
    """The bounds that a baseline misses: `misses max_general_drop`; empty if it has all."""
    return f"misses {', '.join(row.misses)}" if row.misses else ""


def measured_share(candidate: Candidate) -> str:
    """`25.0% of items` if the candidate was measured on some of them, else nothing."""
    return f"{share(candidate.share)} of items" if candidate.share < 1 else ""


def shortened(value: object) -> str:
    """The `repr` of a value for a message, cut if it is long, large or deeply nested."""
    return cut(_BRIEF.repr(value))


def cut(text: str, limit: int = MAX_SHOWN) -> str:
    """A text of at most `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def visible(text: str) -> str:
    r"""A text whose control characters are written out, as `\x1b`: it may be anybody's."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def said(question: Question | None, answer: Answer | None) -> tuple[str, ...]:
    """What a model said to an item: its completions, its choice, or log-likelihoods."""
    if answer is None:
        return ("not kept",)
    choices = question.choices if question is not None else ()
    if answer.texts:
        return answer.texts
    if answer.choice is not None and answer.choice < len(choices):
        return (choices[answer.choice],)
    return (", ".join(f"{likelihood:.4g} nats" for likelihood in answer.likelihoods),)


def _decimals(values: Iterable[float], unit: str) -> int:
    if unit in DECIMALS:
        return DECIMALS[unit]
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    if largest == 0:
        return 1
    return min(MAX_DECIMALS, max(0, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(largest))))


def _fixed(value: float, decimals: int, *, is_signed: bool) -> str:
    if not math.isfinite(value):
        return NO_NUMBER
    text = f"{abs(value):,.{decimals}f}"
    if is_signed:
        return f"{'-' if value < 0 else '+'}{text}"
    is_zero = not any(digit in "123456789" for digit in text)
    return f"-{text}" if value < 0 and not is_zero else text
