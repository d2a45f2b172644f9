"""The page's tables: heads and cells as text, in the order they are shown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from backtrack import formatting
from backtrack.formatting import NO_NUMBER, POINTS
from backtrack.records import ROLES
from backtrack.report import wording

if TYPE_CHECKING:
    from backtrack.records import ObjectiveInfo
    from backtrack.records.selection import Candidate, Difference, ReportRow, Selection

Table = dict[str, Any]

MAX_ROWS = 400
"""Candidates in the page's table; the rest are only in selection.json."""


def report(selection: Selection) -> Table:
    """Base, chosen and final on the report items; also each objective of roles with several."""
    sharing = _apart_from_role(selection)
    heads = [*_role_heads(selection), *(_objective_head(o) for o in sharing)]
    rows = [
        {
            "name": name.capitalize(),
            "point": "" if name == "base" else str(selection.report[name].point),
            "is_chosen": name == "chosen",
            "cells": _report_cells(selection, selection.report[name]),
        }
        for name in ("base", "chosen", "final")
        if name in selection.report
    ]
    return {"heads": heads, "rows": rows}


def differences(selection: Selection) -> Table:
    """Chosen minus final and chosen minus base, and what each interval shows."""
    units = [wording.difference_unit(selection.axes[role]) for role in ROLES]
    heads = [f"{role.capitalize()} ({unit})" for role, unit in zip(ROLES, units, strict=True)]
    ordered = sorted(selection.differences, key=lambda difference: difference.to != "final")
    rows = [
        {
            "name": f"Chosen \N{MINUS SIGN} {difference.to}",
            "cells": _difference_cells(selection, difference),
            "num_items": wording.items_to_settle(difference),
        }
        for difference in ordered
    ]
    return {"heads": [*heads, f"Utility ({POINTS})"], "rows": rows}


def baselines(selection: Selection) -> Table:
    """Models users take without a search, and the chosen point's utility minus theirs."""
    heads = [*_role_heads(selection), "Chosen is better by (points)"]
    axes = selection.axes
    rows = [
        {
            "name": str(row.baseline),
            "misses": formatting.missed(row),
            "cells": [
                {"text": wording.interval(row.target, axes["target"].unit), "comparison": ""},
                {"text": wording.interval(row.general, axes["general"].unit), "comparison": ""},
                {"text": wording.interval(row.utility, POINTS), "comparison": ""},
                {
                    "text": wording.interval(row.difference, POINTS, is_signed=True),
                    "comparison": wording.comparison(row.difference),
                },
            ],
        }
        for row in selection.baselines
    ]
    return {"heads": heads, "rows": rows}


def ranges(selection: Selection) -> Table:
    """The chosen points by range of weights, on selection items."""
    axes = selection.axes
    rows = [
        {
            "name": f"{each.low:.2f}\N{EN DASH}{each.high:.2f}",
            "is_chosen": each.low - 1e-9 <= selection.weight <= each.high + 1e-9,
            "cells": [
                str(each.point),
                wording.number(each.target, axes["target"].unit),
                wording.number(each.general, axes["general"].unit),
            ],
        }
        for each in selection.ranges
    ]
    return {"heads": ["Chosen", *_role_heads(selection)[:-1]], "rows": rows}


def candidates(selection: Selection) -> Table:
    """Every measured point, by smoothed utility, which decides; without a finite one last."""
    heads = [(head, "") for head in _role_heads(selection)[:-1]]
    heads += [("Utility", "utility"), ("Smoothed", "smoothed")]
    heads += [("Chance best", "chance"), ("Distance", "")]
    heads += [(_objective_head(o), "") for o in _apart_from_role(selection)]
    ordered = sorted(enumerate(selection.candidates), key=lambda pair: _by_smoothed(pair[1]))
    caption = (
        "Utility in points. Smoothed: utility of the smoothed scores, which decides the choice. "
        "Chance best: share of bootstrap samples in which it is the highest."
    )
    shown = [
        (index, c) for i, (index, c) in enumerate(ordered) if i < MAX_ROWS or _is_end(selection, c)
    ]
    if len(shown) < len(ordered):
        caption += f" The other {len(ordered) - len(shown):,} are in selection.json."
    rows = [_candidate_row(selection, c) | {"id": index} for index, c in shown]
    return {"heads": heads, "rows": rows, "caption": caption, "num_points": len(ordered)}


def _is_end(selection: Selection, candidate: Candidate) -> bool:
    return candidate.point in (selection.base, selection.chosen, selection.final)


def objectives(selection: Selection) -> list[Table]:
    """Objectives with their numbers of items and the two ends of their yardsticks."""
    return [
        {
            "name": objective.name,
            "role": objective.role,
            "kind": objective.kind,
            "better": "more" if objective.direction == "maximize" else "less",
            "cells": [
                f"{objective.weight:g}",
                *_item_counts(selection, objective),
                *_yardstick_ends(selection, objective),
            ],
        }
        for objective in selection.objectives
    ]


def bounds(selection: Selection) -> list[Table]:
    """The objectives a bound can be set on, with its unit and the words for the worst score."""
    return [
        {
            "name": objective.name,
            "unit": formatting.shown_unit(objective.unit)[0],
            "worst": "at least" if objective.direction == "maximize" else "at most",
        }
        for objective in selection.objectives
    ]


def _role_heads(selection: Selection) -> list[str]:
    heads = [f"{role.capitalize()} ({selection.axes[role].unit})" for role in ROLES]
    return [*heads, f"Utility ({POINTS})"]


def _apart_from_role(selection: Selection) -> list[ObjectiveInfo]:
    return [selection.objectives[i] for i in selection.apart_from_role]


def _objective_head(objective: ObjectiveInfo) -> str:
    return f"{objective.name} ({formatting.shown_unit(objective.unit)[0]})"


def _objective_cell(scores: dict[str, float], objective: ObjectiveInfo) -> str:
    unit, factor = formatting.shown_unit(objective.unit)
    return wording.number(factor * scores.get(objective.name, math.nan), unit)


def _report_cells(selection: Selection, row: ReportRow) -> list[str]:
    axes = selection.axes
    return [
        wording.interval(row.target, axes["target"].unit),
        wording.interval(row.general, axes["general"].unit),
        wording.interval(row.utility, POINTS),
        *(_objective_cell(row.scores, o) for o in _apart_from_role(selection)),
    ]


def _difference_cells(selection: Selection, difference: Difference) -> list[Table]:
    roles = ((selection.axes[role], getattr(difference, role)) for role in ROLES)
    cells = [
        {
            "text": wording.interval(value, wording.difference_unit(axis), is_signed=True),
            "comparison": wording.comparison(value, axis),
        }
        for axis, value in roles
    ]
    utility = difference.utility
    text = wording.interval(utility, POINTS, is_signed=True)
    return [*cells, {"text": text, "comparison": wording.comparison(utility)}]


def _by_smoothed(candidate: Candidate) -> tuple[bool, float]:
    is_number = math.isfinite(candidate.smoothed)
    return not is_number, -candidate.smoothed if is_number else 0.0


def _candidate_row(selection: Selection, candidate: Candidate) -> Table:
    share = formatting.measured_share(candidate)
    return {
        "point": str(candidate.point),
        "order": candidate.point.step + candidate.point.alpha / 10,
        "is_chosen": candidate.point == selection.chosen.canonical,
        "is_feasible": candidate.is_feasible,
        "marks": formatting.point_marks(selection, candidate),
        "origin": f"{candidate.origin}, {share}" if share else candidate.origin,
        "cells": [
            wording.number(candidate.target, selection.axes["target"].unit),
            wording.number(candidate.general, selection.axes["general"].unit),
            wording.number(candidate.utility, POINTS),
            wording.number(candidate.smoothed, POINTS),
            formatting.share(candidate.chance_best),
            wording.number(candidate.distance, ""),
            *(_objective_cell(candidate.scores, o) for o in _apart_from_role(selection)),
        ],
    }


def _item_counts(selection: Selection, objective: ObjectiveInfo) -> list[str]:
    counts = selection.num_items.get(objective.name, {})
    return [f"{counts.get('selection', 0):,}", f"{counts.get('report', 0):,}"]


def _yardstick_ends(selection: Selection, objective: ObjectiveInfo) -> list[str]:
    yardstick = selection.yardsticks.get(objective.name)
    if yardstick is None:
        return [NO_NUMBER] * 2
    return [
        NO_NUMBER if end is None else wording.with_unit(end, objective.unit)
        for end in (yardstick.zero, yardstick.hundred)
    ]
