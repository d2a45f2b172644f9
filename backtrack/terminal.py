"""Terminal output: progress, tables and errors; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, Protocol

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

from backtrack import formatting
from backtrack.formatting import POINTS, visible
from backtrack.records import ROLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backtrack.records import Axis, Interval
    from backtrack.records.selection import Candidate, Difference, ReportRow, Selection

SECONDS_BETWEEN_LINES = 10.0


class PlainConsole(Console):
    """A console on which strings are text, never markup."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*map(_as_text, objects), **options)


class PlainTable(Table):
    """A table whose strings are text, never markup."""

    def __init__(self, title: str | None = None, **options: Any) -> None:
        super().__init__(title=None if title is None else _as_text(title), **options)

    def add_column(self, header: Any = "", *arguments: Any, **options: Any) -> None:
        super().add_column(_as_text(header), *arguments, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*map(_as_text, cells), **options)


def _as_text(value: Any) -> Any:
    return Text(visible(value)) if isinstance(value, str) else value


out = PlainConsole(highlight=False)
err = PlainConsole(stderr=True, highlight=False)


class Report(Protocol):
    """Shows progress: steps done, steps in total, and what is being done."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


@contextmanager
def progress(title: str, *, is_quiet: bool = False) -> Iterator[Report]:
    """Show a progress bar on standard error, or a line every ten seconds if it is no terminal.

    Inside the context, whatever libraries print to standard output goes to standard error:
    standard output is for the result.
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
    """Title, bar, counts, elapsed time, remaining time, and the current work in what is left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", style="dim"),
        TimeRemainingColumn(compact=True),
        TextColumn(
            "{task.fields[what]}",
            markup=False,
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
        self._bar.update(self._task, completed=done, total=total, what=visible(what))


class _Lines:
    def __init__(self, title: str) -> None:
        self._title = title
        self._last = -SECONDS_BETWEEN_LINES
        self._first_call: tuple[float, int] | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        self._first_call = self._first_call or (now, done)
        if done == total or now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            remaining = self._remaining(done, total)
            sys.stderr.write(f"{self._title}: {done} of {total}{remaining}  {visible(what)}\n")
            sys.stderr.flush()

    def _remaining(self, done: int, total: int) -> str:
        """Remaining time at the pace since the first call; empty while there is no pace yet."""
        assert self._first_call is not None
        start, done_at_start = self._first_call
        if done <= done_at_start or done >= total:
            return ""
        seconds = (time.monotonic() - start) / (done - done_at_start) * (total - done)
        return f", about {formatting.duration(seconds)} left"


def print_error(message: str) -> None:
    """Print an error message."""
    err.print(f"error: {message}", style="red", soft_wrap=True)


def print_unexpected(error: Exception) -> None:
    """Print an unexpected exception: its traceback, then what to do."""
    import traceback

    sys.stderr.write("".join(traceback.format_exception(error)))
    first_line = next(iter(str(error).strip().splitlines()), "")
    print_error(
        f"unexpected {type(error).__name__}: {first_line or 'no message'} Everything saved and "
        "measured so far is kept. Please report the lines above."
    )


def print_note(message: str) -> None:
    """Print a remark on standard error."""
    err.print(message, style="dim", soft_wrap=True)


def print_line(text: str) -> None:
    """Print a line of the result that only the terminal wraps."""
    out.print(text, soft_wrap=True)


def print_plan(
    num_points: int, least_items: int, most_items: int, recorded_items: int, seconds: float | None
) -> None:
    """Print what a search will cost, before it starts."""
    least = f", {least_items:,} if racing drops all it can" if least_items < most_items else ""
    recorded = f"; {recorded_items:,} recorded already" if recorded_items else ""
    time_text = f"; about {formatting.duration(seconds)}" if seconds is not None else ""
    print_note(
        f"{num_points} points, at most {most_items:,} items to score{least}{recorded}{time_text}."
    )


def print_selection(selection: Selection) -> None:
    """Print base, chosen and final, objectives, baselines, the verdict and the cautions."""
    out.print(_before_after(selection))
    if selection.apart_from_role:
        out.print(_by_objective(selection))
    if selection.baselines:
        out.print(_baselines(selection))
    out.print(selection.verdict, style="bold")
    _print_change(selection)
    for sentence in (formatting.how_chosen(selection), formatting.how_claimed(selection)):
        out.print(f"- {sentence}", style="dim")
    if selection.hypervolume is not None:
        percent = formatting.interval(selection.hypervolume, "%", factor=100)
        out.print(
            f"- Hypervolume: the front dominates {percent}% of the box from the worse of base and "
            "final to the best score of each role (selection items).",
        )
    for note in selection.notes:
        out.print(f"- {note}", style="yellow")


def _print_change(selection: Selection) -> None:
    """Print both roles before and after, and the objective that lost most."""
    if not selection.chosen.is_base:
        lost = formatting.lost_most(selection)
        change = f"From the base: {formatting.before_and_after(selection)}"
        out.print(f"{change}; {lost}." if lost else f"{change}.", style="bold")


def _by_objective(selection: Selection) -> PlainTable:
    """Each objective on the report items, and the chosen point's difference from the base."""
    to_base = next((d for d in selection.differences if d.to == "base"), None)
    table = _table("each objective, on report items")
    for name in ("objective", *selection.report, "vs base"):
        table.add_column(name, justify="left" if name == "objective" else "right")
    for o in selection.objectives:
        unit, factor = formatting.shown_unit(o.unit)
        rows = selection.report.values()
        scores = [formatting.number(factor * row.scores[o.name], unit) for row in rows]
        change = to_base.scores.get(o.name) if to_base else None
        text = formatting.interval(change, unit, is_signed=True, factor=factor) if change else ""
        table.add_row(f"{o.name} ({o.role})", *scores, text)
    return table


def _baselines(selection: Selection) -> PlainTable:
    """Models users take without a search, and the chosen point's utility minus theirs."""
    units = [selection.axes[role].unit for role in ROLES]
    table = _table("without a search, on report items")
    table.add_column("")
    for name in (*ROLES, "chosen is better by"):
        table.add_column(name, justify="right")
    for row in selection.baselines:
        values = zip((row.target.estimate, row.general.estimate), units, strict=True)
        cells = [formatting.number(value, unit) for value, unit in values]
        name = "\n".join(filter(None, (str(row.baseline), formatting.missed(row))))
        table.add_row(name, *cells, _difference(row.difference, POINTS))
    return table


def print_weights(selections: Sequence[Selection]) -> None:
    """Print the choice at each of several weights, on report items."""
    target, general = (selections[0].axes[role] for role in ROLES)
    table = _table("by weight, on report items")
    names = ("weight", "chosen", heading("target", target), heading("general", general))
    for name in (*names, "vs base", "vs final"):
        table.add_column(name, justify="left" if name == "chosen" else "right")
    for selection in selections:
        row = selection.report["chosen"]
        to = {d.to: _difference(d.utility, POINTS) for d in selection.differences}
        cells = (
            formatting.interval(row.target, target.unit),
            formatting.interval(row.general, general.unit),
        )
        point = str(selection.chosen)
        table.add_row(f"{selection.weight:g}", point, *cells, to["base"], to["final"])
    out.print()
    out.print(table)


def print_ranges(selection: Selection) -> None:
    """Print the chosen points by range of weights, on selection items."""
    axes = [selection.axes[role] for role in ROLES]
    table = _table("chosen by weight, on selection items")
    names = ("weights", "chosen", heading("target", axes[0]), heading("general", axes[1]))
    for name in names:
        table.add_column(name, justify="left" if name == "chosen" else "right")
    for row in selection.ranges:
        numbers = zip((row.target, row.general), axes, strict=True)
        cells = [formatting.number(value, axis.unit) for value, axis in numbers]
        table.add_row(f"{row.low:.2f}-{row.high:.2f}", str(row.point), *cells)
    out.print(table)


def _before_after(selection: Selection) -> PlainTable:
    target, general = (selection.axes[role] for role in ROLES)
    table = _table(
        f"{selection.run}, weight {selection.weight:.3g}: chosen {selection.chosen}, "
        f"final step {selection.final.step}"
    )
    table.add_column("")
    for name in (heading("target", target), heading("general", general), "utility"):
        table.add_column(name, justify="right")
    for name, row in selection.report.items():
        style = "bold" if name == "chosen" else None
        table.add_row(name, *_cells(formatting.interval, row, selection), style=style)
    table.add_section()
    for difference in selection.differences:
        table.add_row(f"vs {difference.to}", *_cells(_difference, difference, selection))
    return table


def _cells(
    form: Callable[[Interval, str], str], row: ReportRow | Difference, selection: Selection
) -> tuple[str, str, str]:
    target, general = (selection.axes[role].unit for role in ROLES)
    return form(row.target, target), form(row.general, general), form(row.utility, POINTS)


def _difference(value: Interval, unit: str) -> str:
    return formatting.interval(value, unit, is_signed=True)


def print_candidates(selection: Selection, limit: int = 12) -> None:
    """Print the measured points by smoothed utility, which decides, on selection items.

    Points that miss a bound come last.
    """
    units = [selection.axes[role].unit for role in ROLES] + [POINTS, POINTS]
    table = _table("measured points, by smoothed utility on selection items")
    table.add_column("point", no_wrap=True)
    for name in ("target", "general", "utility", "smoothed"):
        table.add_column(name, justify="right")
    table.add_column("")
    ranked = sorted(selection.candidates, key=lambda c: (not c.is_feasible, -c.smoothed))
    chosen = selection.chosen.canonical
    shown = [c for i, c in enumerate(ranked) if i < limit or c.point == chosen]
    for candidate in shown:
        c = candidate
        values = (c.target, c.general, c.utility, c.smoothed)
        numbers = [formatting.number(v, unit) for v, unit in zip(values, units, strict=True)]
        table.add_row(str(candidate.point), *numbers, _marks(selection, candidate))
    out.print(table)
    if len(ranked) > len(shown):
        out.print(f"and {len(ranked) - len(shown)} more in selection.json", style="dim")
        out.print()


def _table(title: str | None = None) -> PlainTable:
    return PlainTable(title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _marks(selection: Selection, candidate: Candidate) -> str:
    share = formatting.measured_share(candidate)
    return ", ".join([*formatting.point_marks(selection, candidate), *([share] if share else [])])


def heading(role: str, axis: Axis) -> str:
    """A column's title: role, unit, and the direction if less is better."""
    less = ", less is better" if axis.direction == "minimize" else ""
    return f"{role} ({axis.unit}{less})"


def print_findings(findings: Sequence[tuple[str, str, str, str]]) -> None:
    """Print findings, each with its advice on a line of its own.

    Args:
        findings: Sign (`ok`, `missing` or `note`), topic, text, advice.
    """
    styles = {"ok": "green", "missing": "red", "note": "yellow"}
    table = PlainTable(box=None, show_header=False, pad_edge=False)
    for sign, topic, text, advice in findings:
        cell = Text(visible(text))
        if advice:
            cell.append(f"\n{visible(advice)}", style="dim")
        table.add_row(Text(sign, style=styles[sign]), topic, cell)
    out.print(table)


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table whose names are whole at any width; nothing if it has no rows."""
    if not rows:
        return
    table = _table()
    for name in headings:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)
