"""The command `compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from backtrack import formatting, terminal
from backtrack.cli.app import app
from backtrack.cli.options import JsonOption, QuietOption, VerboseOption
from backtrack.cli.targets import open_run, print_json
from backtrack.errors import UsageError
from backtrack.point import NAMES, find_point, is_point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.point import Point
    from backtrack.records.answers import ComparedItem, ComparedObjective, Comparison
    from backtrack.records.selection import Selection

MAX_BRIEF = 300
"""Most characters of a text that are printed."""


@app.command()
def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [POINT] [POINT]...",
            help="A run, then points: base, chosen, final, STEP:ALPHA, or ALPHA of the last step; "
            "default: the newest run's base, choice and final checkpoint.",
            show_default=False,
        ),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="Only this objective; default: all, the worst first.")
    ] = None,
    items: Annotated[int, typer.Option(min=0, help="Items shown as lost, and as won.")] = 3,
    *,
    is_json: JsonOption = False,
    is_quiet: QuietOption = False,
    _verbosity: VerboseOption = 0,
) -> None:
    """Show the items that one point wins and loses against another, and what the model said.

    Items are compared between the first two points; the others are shown beside them. No model is
    loaded. With --json all items are listed.
    """
    from backtrack.selection.measure.comparing import compare_points

    texts = names or []
    named_run = [text for text in texts[:1] if not is_point(text)]
    run = open_run(next(iter(named_run), None), None, None, may_run_code=None)
    selection = run.selection()
    if selection is None:
        raise UsageError(f"{run.path} has no choice yet: `backtrack select` makes one.")
    points = _points(texts[len(named_run) :], selection)
    if objective is not None:
        selection = _only(selection, objective)
    found = compare_points(run, selection, points, None if is_json else items)
    if is_json:
        print_json(
            {
                "points": [str(point) for point in found.points],
                "objectives": [each.model_dump(mode="json") for each in found.objectives],
            }
        )
        return
    _print(found, is_quiet=is_quiet)


def _points(texts: Sequence[str], selection: Selection) -> list[Point]:
    """The points that are named, by default base, choice and final checkpoint; two at least."""
    ends = {"base": selection.base, "chosen": selection.chosen, "final": selection.final}
    asked = texts or [name for name in NAMES if name != "chosen" or not selection.chosen.is_base]
    if len(asked) == 1:
        asked = ["base", *asked]
    points = [find_point(text, ends) for text in asked]
    distinct = list(dict.fromkeys(point.canonical for point in points))
    if len(distinct) < 2:
        raise UsageError(f"{' and '.join(asked)} are one point, {distinct[0]}. Name two.")
    return distinct


def _only(selection: Selection, name: str) -> Selection:
    """The selection with one of its objectives."""
    named = tuple(o for o in selection.objectives if o.name == name)
    if not named:
        known = ", ".join(o.name for o in selection.objectives)
        raise UsageError(f"there is no objective {name!r}. There are {known}.")
    return selection.model_copy(update={"objectives": named})


def _print(found: Comparison, *, is_quiet: bool) -> None:
    points = found.points
    if not is_quiet:
        against = ", ".join(str(point) for point in points[2:])
        terminal.print_note(
            f"Lost and won: {points[1]} against {points[0]}"
            f"{f'; {against} beside them' if against else ''}."
        )
    for each in found.objectives:
        _print_objective(each, [str(point) for point in points])


def _print_objective(compared: ComparedObjective, points: Sequence[str]) -> None:
    """Print one objective's scores at points, then items lost and won with what was said.

    Args:
        compared: The objective.
        points: Names of the points, in its order.
    """
    unit, factor = formatting.shown_unit(compared.unit)
    means = [formatting.number(factor * mean, unit) for mean in compared.means]
    scores = ", ".join(f"{p} {m}" for p, m in zip(points, means, strict=True))
    terminal.out.print(
        f"{compared.objective} ({compared.role}, {unit}): {scores}; {compared.num_lost} lost "
        f"and {compared.num_won} won of {compared.num_items} {compared.split} items",
        style="bold",
    )
    for label, items in (("lost", compared.lost), ("won", compared.won)):
        for item in items:
            terminal.out.print(_compared_item(label, item, points))
    terminal.out.print()


def _compared_item(label: str, item: ComparedItem, points: Sequence[str]) -> terminal.PlainTable:
    """An item: what was asked, the right answer, and what was said at each point."""
    table = terminal.PlainTable(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_row(Text(label, style="red" if label == "lost" else "green"), item.item)
    question = item.question
    if question is not None:
        table.add_row("asked", _brief(question.prompt))
        if question.gold:
            table.add_row("right", _brief(question.gold))
    for point, score, answer in zip(points, item.scores, item.answers, strict=True):
        texts = " | ".join(map(_brief, formatting.said(question, answer)))
        table.add_row(point, f"{texts}  ({score:.4g})")
    return table


def _brief(text: str) -> str:
    """A text in one line, its end if it is long: the question comes after what leads to it."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_BRIEF else f"...{line[3 - MAX_BRIEF :]}"
