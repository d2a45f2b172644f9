"""What a person sees in a terminal: progress, tables, errors; plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Protocol

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from backtrack.records import ROLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backtrack.records import Axis, Interval
    from backtrack.records.selection import Candidate, Difference, ReportRow, Selection

SECONDS_BETWEEN_LINES = 10.0

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class Report(Protocol):
    """Called as work goes on: how much is done, of how much, and what."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


@contextmanager
def progress(title: str, *, is_quiet: bool = False) -> Iterator[Report]:
    """A progress bar on standard error, or a line now and then where that is no terminal.

    While it lasts, what libraries print goes there too: standard output is for the result.
    """
    with redirect_stdout(sys.stderr):
        if is_quiet:
            yield lambda _done, _total, _what: None
        elif not err.is_terminal:
            sys.stderr.write(f"{title}: loading\n")
            yield _Lines(title)
        else:
            with _bar() as bar:
                yield _Bar(bar, bar.add_task(title, total=None, what="loading"))


def _bar() -> Progress:
    """Title, bar, how much of how much, time gone, time left; what is being done gets the rest."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", style="dim"),
        TimeRemainingColumn(compact=True),
        TextColumn(
            "{task.fields[what]}",
            style="dim",
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
        console=err,
        expand=True,
    )


class _Bar:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task

    def __call__(self, done: int, total: int, what: str) -> None:
        self._bar.update(self._task, completed=done, total=total, what=what)


class _Lines:
    def __init__(self, title: str) -> None:
        self._title = title
        self._last = -SECONDS_BETWEEN_LINES
        self._begin: tuple[float, int] | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        self._begin = self._begin or (now, done)
        if done == total or now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            left = self._left(done, total)
            sys.stderr.write(f"{self._title}: {done} of {total}{left}  {what}\n")
            sys.stderr.flush()

    def _left(self, done: int, total: int) -> str:
        """Time left at the pace since the first call, once there is one."""
        assert self._begin is not None
        begun, at = self._begin
        if done <= at or done >= total:
            return ""
        seconds = (time.monotonic() - begun) / (done - at) * (total - done)
        return f", about {duration(seconds)} left"


def print_error(message: str) -> None:
    """One error in one voice. Not marked up: a message may hold `[...]`."""
    err.print(f"error: {message}", markup=False, style="red", soft_wrap=True)


def print_unexpected(error: Exception) -> None:
    """An error nobody raised on purpose: where it came from, then what to do, in one voice."""
    import traceback

    sys.stderr.write("".join(traceback.format_exception(error)))
    said = next(iter(str(error).strip().splitlines()), "")
    print_error(
        f"unexpected {type(error).__name__}: {said or 'no message'} What was saved and measured "
        "is kept. Please report the lines above."
    )


def print_note(message: str) -> None:
    """A remark beside the result, on standard error."""
    err.print(message, markup=False, style="dim", soft_wrap=True)


def print_line(text: str) -> None:
    """A line of the result: not marked up, and broken by the terminal alone."""
    out.print(text, markup=False, soft_wrap=True)


def print_plan(
    num_points: int, least_items: int, most_items: int, done_items: int, seconds: float | None
) -> None:
    """What a search will cost, before it starts."""
    least = f", {least_items:,} if racing drops all it can" if least_items < most_items else ""
    done = f"; {done_items:,} on record" if done_items else ""
    when = f"; about {duration(seconds)}" if seconds is not None else ""
    print_note(f"{num_points} points, at most {most_items:,} items scored{least}{done}{when}.")


def duration(seconds: float) -> str:
    """`40 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_selection(selection: Selection) -> None:
    """The before/after table, each objective, baselines, the verdict and the cautions."""
    out.print(_before_after(selection))
    if len(selection.objectives) > 2:
        out.print(_by_objective(selection))
    if selection.baselines:
        out.print(_against_baselines(selection))
    out.print(selection.verdict, markup=False, style="bold")
    for difference in selection.differences:
        utility = difference.utility
        if difference.items_to_settle and utility.low <= 0 <= utility.high:
            out.print(_more_items(selection, difference), markup=False)
    if selection.hypervolume is not None:
        share = _scaled(selection.hypervolume, 100)
        out.print(
            f"- The front covers {shown(share, '%')}% of the way from the worse of base and final "
            "to the best seen on both roles (selection items).",
            markup=False,
        )
    for note in selection.notes:
        out.print(f"- {note}", markup=False, style="yellow")


def _more_items(selection: Selection, difference: Difference) -> str:
    """How many items would settle a difference, and how many more than there are."""
    needed = difference.items_to_settle or 0
    roles = {o.name: o.role for o in selection.objectives}
    have = min(
        sum(n["report"] for name, n in selection.num_items.items() if roles[name] == role)
        for role in ROLES
    )
    more = f" ({needed - have:,} more)" if needed > have else ""
    return f"- {needed:,} items a role{more} would settle chosen against {difference.to}."


def _scaled(value: Interval, factor: float) -> Interval:
    ends = {name: factor * number for name, number in value.model_dump().items()}
    return value.model_copy(update=ends)


def _by_objective(selection: Selection) -> Table:
    """Each objective on the report items, and the chosen point's change from the base."""
    to_base = next((d for d in selection.differences if d.to == "base"), None)
    table = _table("each objective, on report items")
    for name in ("objective", *selection.report, "vs base"):
        table.add_column(name, justify="left" if name == "objective" else "right")
    for o in selection.objectives:
        unit, factor = ("%", 100.0) if o.unit == "fraction" else (o.unit, 1.0)
        rows = selection.report.values()
        scores = [f"{factor * row.scores[o.name]:{_digits(unit)}}" for row in rows]
        change = to_base.scores.get(o.name) if to_base else None
        text = signed(_scaled(change, factor), unit) if change else ""
        table.add_row(f"{o.name} ({o.role})", *scores, text)
    return table


def _against_baselines(selection: Selection) -> Table:
    """What users take without a search, and the chosen point's utility less theirs."""
    units = [selection.axes[role].unit for role in ROLES]
    table = _table("without a search, on report items")
    table.add_column("")
    for name in (*ROLES, "chosen is better by"):
        table.add_column(name, justify="right")
    for row in selection.baselines:
        values = zip((row.target.estimate, row.general.estimate), units, strict=True)
        cells = [f"{value:{_digits(unit)}}" for value, unit in values]
        table.add_row(str(row.baseline), *cells, signed(row.difference, "points"))
    return table


def print_weights(selections: Sequence[Selection]) -> None:
    """The choice for each of several weights, on report items."""
    target, general = (selections[0].axes[role] for role in ROLES)
    table = _table("by weight, on report items")
    names = ("weight", "chosen", heading("target", target), heading("general", general))
    for name in (*names, "vs base", "vs final"):
        table.add_column(name, justify="left" if name == "chosen" else "right")
    for each in selections:
        row = each.report["chosen"]
        to = {d.to: signed(d.utility, "points") for d in each.differences}
        cells = (shown(row.target, target.unit), shown(row.general, general.unit))
        table.add_row(f"{each.weight:g}", str(each.chosen), *cells, to["base"], to["final"])
    out.print(table)


def print_ranges(selection: Selection) -> None:
    """The chosen points by the weights they serve, on selection items."""
    units = [selection.axes[role] for role in ROLES]
    table = _table("chosen by weight, on selection items")
    names = ("weights", "chosen", heading("target", units[0]), heading("general", units[1]))
    for name in names:
        table.add_column(name, justify="left" if name == "chosen" else "right")
    for each in selection.ranges:
        numbers = zip((each.target, each.general), units, strict=True)
        cells = [f"{value:{_digits(axis.unit)}}" for value, axis in numbers]
        table.add_row(f"{each.low:.2f}-{each.high:.2f}", str(each.point), *cells)
    out.print(table)


def _before_after(selection: Selection) -> Table:
    target, general = (selection.axes[role] for role in ROLES)
    table = _table(
        f"{selection.run}, weight {selection.weight:g}: chosen {selection.chosen}, "
        f"final step {selection.final.step}"
    )
    table.add_column("")
    for name in (heading("target", target), heading("general", general), "utility"):
        table.add_column(name, justify="right")
    for name, row in selection.report.items():
        style = "bold" if name == "chosen" else None
        table.add_row(name, *_cells(shown, row, selection), style=style)
    table.add_section()
    for each in selection.differences:
        table.add_row(f"vs {each.to}", *_cells(signed, each, selection))
    return table


def _cells(
    form: Callable[[Interval, str], str], row: ReportRow | Difference, selection: Selection
) -> tuple[str, str, str]:
    target, general = (selection.axes[role].unit for role in ROLES)
    return form(row.target, target), form(row.general, general), form(row.utility, "points")


def print_candidates(selection: Selection, limit: int = 12) -> None:
    """The measured points by utility, on selection items."""
    units = [selection.axes[role].unit for role in ROLES] + ["points"]
    table = _table("measured points, by utility on selection items")
    for name in ("point", "target", "general", "utility"):
        table.add_column(name, justify="left" if name == "point" else "right")
    table.add_column("")
    ranked = sorted(selection.candidates, key=lambda c: -c.utility)
    for candidate in ranked[:limit]:
        values = (candidate.target, candidate.general, candidate.utility)
        numbers = [f"{v:{_digits(unit)}}" for v, unit in zip(values, units, strict=True)]
        is_chosen = candidate.point == selection.chosen
        table.add_row(str(candidate.point), *numbers, marks(candidate, is_chosen=is_chosen))
    out.print(table)
    if len(ranked) > limit:
        out.print(f"and {len(ranked) - limit} more in selection.json", style="dim")
        out.print()


def _table(title: str | None = None) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def marks(candidate: Candidate, *, is_chosen: bool) -> str:
    """`chosen`, `front`, `tied`, `out of bounds`: what holds of a candidate."""
    part = f"{candidate.share:.0%} of items" if candidate.share < 1 else ""
    said = {
        "chosen": is_chosen,
        "front": candidate.is_on_front,
        "tied": candidate.is_tied,
        "out of bounds": not candidate.is_feasible,
        part: bool(part),
    }
    return ", ".join(word for word, holds in said.items() if holds)


def heading(role: str, axis: Axis) -> str:
    """A column's title with unit and, where less is better, that."""
    less = ", less is better" if axis.direction == "minimize" else ""
    return f"{role} ({axis.unit}{less})"


def shown(interval: Interval, unit: str) -> str:
    """`82.1 [78.9, 85.0]`."""
    kind = _digits(unit)
    return f"{interval.estimate:{kind}} [{interval.low:{kind}}, {interval.high:{kind}}]"


def signed(interval: Interval, unit: str) -> str:
    """`+3.1 [+0.4, +5.9]`."""
    kind = "+" + _digits(unit)
    return f"{interval.estimate:{kind}} [{interval.low:{kind}}, {interval.high:{kind}}]"


def _digits(unit: str) -> str:
    return ".1f" if unit in {"%", "points"} else ".4g"


def print_findings(found: Sequence[tuple[str, str, str, str]]) -> None:
    """Signs, topics and texts, each with its advice on a line of its own.

    Args:
        found: Sign (`ok`, `missing` or `note`), topic, text, advice.
    """
    styles = {"ok": "green", "missing": "red", "note": "yellow"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for sign, topic, text, advice in found:
        said = Text(text)
        if advice:
            said.append(f"\n{advice}", style="dim")
        table.add_row(Text(sign, style=styles[sign]), Text(topic), said)
    out.print(table)


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table."""
    table = _table()
    for name in headings:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    out.print(table)
