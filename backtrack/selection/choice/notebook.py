"""How a choice reads in Python: one line, a table of points, and HTML for a notebook."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING, Any

from backtrack import formatting
from backtrack.records import ROLES

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from backtrack.records.selection import Selection


def in_one_line(selection: Selection) -> str:
    """What was chosen, and what it brings and costs on the report items."""
    change = formatting.before_and_after(selection)
    return f"{selection.chosen} at weight {selection.weight:g}: {change}"


def candidates_frame(selection: Selection) -> pd.DataFrame:
    """Every measured point, on the selection items: a row a point, in the order of measuring.

    Columns are step, alpha, profile, target, general, utility and smoothed (in points), share (of
    the items), chance_best, chosen, tied, front, feasible, and the score of each objective.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for c in selection.candidates:
        row = {"step": c.point.step, "alpha": c.point.alpha, "profile": c.point.profile}
        names = ("target", "general", "utility", "smoothed", "share", "chance_best")
        row |= {name: getattr(c, name) for name in names}
        row |= {"chosen": c.point == selection.chosen.canonical, "tied": c.is_tied}
        rows.append(row | {"front": c.is_on_front, "feasible": c.is_feasible, **c.scores})
    return pd.DataFrame(rows)


def as_html(selection: Selection, picture: Path) -> str:
    """The verdict, the scores on the report items with their intervals, and the picture.

    Args:
        selection: The selection.
        picture: A PNG of target against general; left out if it is not there.
    """
    heads = [f"{role} ({selection.axes[role].unit})" for role in ROLES] + ["utility"]
    lines = [["", *heads]]
    for name, row in selection.report.items():
        units = [*(selection.axes[role].unit for role in ROLES), formatting.POINTS]
        values = zip((row.target, row.general, row.utility), units, strict=True)
        lines.append([name, *(formatting.interval(value, unit) for value, unit in values)])
    table = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in line)}</tr>" for line in lines)
    image = ""
    if picture.is_file():
        content = base64.b64encode(picture.read_bytes()).decode()
        image = (
            f'<img alt="target against general" width="720" src="data:image/png;base64,{content}">'
        )
    return f"<p><b>{escape(selection.verdict)}</b></p><table>{table}</table>{image}"
