"""Choose a point and say how sure that is.

Promised: what is on record is used as it stands, so choosing again under another weight or other
constraints loads no model where base, choice and final checkpoint are on record for the report
items. The same measurements and seed give the same selection but for its time.
Not promised: that documents changed under the same name are noticed before something is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backtrack.errors import UsageError
from backtrack.recipe import SelectSection
from backtrack.records.selection import Constraints, Selection
from backtrack.run.directory import now
from backtrack.selection.choice.candidates import (
    Judgement,
    front_hypervolume,
    judge,
    knee,
    weight_ranges,
)
from backtrack.selection.choice.sweep import sweep
from backtrack.selection.choice.verdict import broken_on_report, cautions, few_items, verdict
from backtrack.selection.measure.baselines import (
    measure_baseline,
    off_the_path,
    on_the_path,
    recorded,
    with_rows,
)
from backtrack.selection.measure.contamination import guard_notes
from backtrack.selection.measure.evaluator import Bench
from backtrack.selection.measure.progress import Meter, Progress
from backtrack.selection.search.space import anchors
from backtrack.selection.stats.bootstrap import LEVEL, NUM_RESAMPLES
from backtrack.selection.stats.comparisons import baseline_row, differences, report_rows
from backtrack.selection.stats.scores import Reading, axes_of
from backtrack.selection.stats.table import strangers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.path.placement import Placement
    from backtrack.point import Point
    from backtrack.recipe import Recipe
    from backtrack.records import Split
    from backtrack.records.selection import Baseline, BaselineRow
    from backtrack.records.sweep import Sweep
    from backtrack.run.directory import Run
    from backtrack.selection.stats.table import Setting, Table

    OnProgress = Callable[[Progress], None]

__all__ = ["Choice", "Progress", "select", "select_each"]


@dataclass(frozen=True)
class Choice:
    """The chosen point.

    Attributes:
        point: Where to stand.
        tied: Points that cannot be told apart from the one of highest utility.
        selection: All that speaks for and against it, as written to `selection.json`.
        report: Where the run's report is drawn.
    """

    point: Point
    tied: tuple[Point, ...]
    selection: Selection
    report: Path


def select(  # noqa: PLR0913  # the front door: every argument but the run is optional
    run: Run,
    *,
    weight: float | None = None,
    is_knee: bool = False,
    constraints: Constraints | None = None,
    recipe: Recipe | None = None,
    placement: Placement | None = None,
    objectives: Sequence[Objective] | None = None,
    on_progress: OnProgress | None = None,
    command: str = "",
) -> Choice:
    """Choose the point that serves a weighting best, and write `selection.json`.

    Searches first where base and final checkpoint are not measured. Then measures base, choice,
    final checkpoint and the recipe's baselines on the report items, unless they are on record. The
    rule: see `choosing`.

    Args:
        run: A run with at least one checkpoint.
        weight: Of the target in the utility, 0 to 1; the recipe's if not given.
        is_knee: Take the weight at which both ends of the front are worth the same, so that the
            choice is the knee of the front.
        constraints: Bounds, in points; the recipe's if not given.
        recipe: What to measure; the run's own if not given.
        placement: The run's live model; loaded if not given and something must be measured.
        objectives: Ready-made ones, in place of the recipe's.
        on_progress: Called before each objective and after each point.
        command: What the user typed, for the record.

    Returns:
        The point, what is tied with the best, and all that speaks for and against it.

    Raises:
        UsageError: The weight is out of range, or nothing says what to measure.
        SelectionError: No point meets the constraints.
        ObjectiveError: An objective cannot be measured. What was measured stays.
    """
    bench = Bench(run, recipe, placement, objectives)
    selector = _Selector(bench, constraints, on_progress, command)
    return selector.choose(weight, is_knee=is_knee)


def select_each(
    run: Run,
    weights: Sequence[float],
    *,
    constraints: Constraints | None = None,
    on_progress: OnProgress | None = None,
    command: str = "",
) -> list[Choice]:
    """`select` for several weights, one model loaded at most; `selection.json` holds the first.

    Raises:
        UsageError: No weight, or one out of range.
        SelectionError: No point meets the constraints.
        ObjectiveError: An objective cannot be measured. What was measured stays.
    """
    if not weights:
        raise UsageError("give one weight or more.")
    for weight in weights:
        _require_share(weight)
    selector = _Selector(Bench(run, None, None, None), constraints, on_progress, command)
    found = [selector.choose(weight) for weight in weights]
    run.write_selection(found[0].selection)
    return found


class _Selector:
    """Chooses from what is on record, and measures what the report lacks."""

    def __init__(
        self,
        bench: Bench,
        constraints: Constraints | None,
        on_progress: OnProgress | None,
        command: str,
    ) -> None:
        self._bench = bench
        self._section = bench.recipe.select if bench.recipe else SelectSection()
        asked = self._section.model_dump(exclude={"weight"})
        self._constraints = Constraints(**asked) if constraints is None else constraints
        self._on_progress = on_progress
        self._command = command
        self._sweep: Sweep | None = None

    def choose(self, weight: float | None, *, is_knee: bool = False) -> Choice:
        """Choose, measure the report items, and write the selection."""
        bench = self._bench
        weight = _require_share(self._section.weight if weight is None else weight)
        while True:
            table = _selection_table(bench, self._on_progress)
            if is_knee:
                weight = knee(table, bench.run.final, bench.section.seed)
            judgement = judge(
                table, bench.run.final, weight, self._constraints, bench.section.seed
            )
            report = self._report_table(judgement)
            if report is not None:
                break
            # Objectives built now may differ from those on record: choose anew among what fits.
            bench.build()
        reading = Reading(report, judgement.reading.yardsticks, weight, bench.section.seed)
        rows, left_out = self._baselines(judgement, reading)
        selection = _record(bench, judgement, reading, self._constraints, self._command)
        knee_note = [_KNEE.format(weight=weight)] if is_knee else []
        selection = selection.model_copy(
            update={
                "baselines": rows,
                "notes": (*knee_note, *selection.notes, *left_out),
                "ranges": weight_ranges(judgement, self._constraints),
                "hypervolume": front_hypervolume(judgement),
            }
        )
        bench.run.write_selection(selection)
        # The answers to all weights are the same whichever of them comes first.
        self._sweep = self._sweep or sweep(judgement, selection.created)
        bench.run.write_sweep(self._sweep)
        page = bench.run.path / "report.html"
        return Choice(selection.chosen, selection.tied, selection, page)

    def _report_table(self, judgement: Judgement) -> Table | None:
        """Scores on the report items; none where they are not on record and nothing is built."""
        bench = self._bench
        rivals = on_the_path(judgement.reading, bench.section, bench.run.final)
        asked = [*bench.ends, judgement.chosen, *(b.point for b in rivals if b.point)]
        points = tuple(dict.fromkeys(asked))
        off, _ = off_the_path(bench.run, bench.section, is_served=bench.is_served)
        if bench.is_built:
            self._measure_report(points, off)
            return bench.table(bench.setting("report"))
        chosen_under = judgement.reading.table.setting
        setting = bench.standing("report", like=chosen_under)
        if setting is None or _overlap(setting, chosen_under):
            return None
        table = bench.table(setting)
        is_there = table.holds(points) and len(recorded(bench.run, setting, off)) == len(off)
        return table if is_there else None

    def _measure_report(self, points: Sequence[Point], off: Sequence[Baseline]) -> None:
        """Measure what the report items lack: points, and baselines off the path."""
        bench = self._bench
        num_models = len(points) + len(off)
        meter = Meter(num_models * bench.num_items("report"), self._on_progress)
        bench.expect(points)
        for point in points:
            if not bench.table(bench.setting("report")).holds([point]):
                bench.measure(point, "report", "report", meter)
        setting = bench.setting("report")
        there = recorded(bench.run, setting, off)
        for baseline in off:
            if baseline not in there:
                measure_baseline(bench.run, bench.placement, bench.objectives, setting, baseline)

    def _baselines(
        self, judgement: Judgement, report: Reading
    ) -> tuple[tuple[BaselineRow, ...], list[str]]:
        """Rows of the baselines on the report items, and why some are left out."""
        bench, table = self._bench, report.table
        off, left_out = off_the_path(bench.run, bench.section, is_served=bench.is_served)
        there = recorded(bench.run, table.setting, off)
        scores = with_rows(table, list(there.values()))
        joined = replace(report, table=replace(table, scores=scores))
        on = on_the_path(judgement.reading, bench.section, bench.run.final)
        columns = {b: table.column(b.point) for b in on if b.point is not None}
        columns |= {b: len(table.points) + i for i, b in enumerate(there)}
        chosen = table.column(judgement.chosen)
        rows = [baseline_row(joined, b, column, chosen) for b, column in columns.items()]
        return tuple(rows), left_out


_KNEE = (
    "The weight {weight:.2f} was taken from the front: both its ends are worth the same there, so "
    "the choice is its knee."
)


def _require_share(weight: float) -> float:
    if not 0 <= weight <= 1:
        raise UsageError(
            f"the weight is the target's share of the utility, from 0 to 1; got {weight:g}. "
            "Give --weight 0.6 on the command line, or `select: {weight: 0.6}` in the recipe."
        )
    return weight


def _selection_table(bench: Bench, on_progress: OnProgress | None) -> Table:
    setting = bench.standing("selection")
    if setting is not None:
        table = bench.table(setting)
        if table.knows(bench.ends):
            return table
    # Optuna takes half a second to import and is not needed to choose again.
    from backtrack.selection.search.driver import search

    search(
        bench.run,
        placement=bench.placement,
        recipe=bench.recipe,
        objectives=bench.objectives,
        on_progress=on_progress,
    )
    bench.reload()
    return bench.table(bench.setting("selection"))


def _overlap(setting: Setting, other: Setting) -> bool:
    return any(set(ids) & set(other.item_ids[name]) for name, ids in setting.item_ids.items())


def _record(
    bench: Bench, judgement: Judgement, reading: Reading, constraints: Constraints, command: str
) -> Selection:
    table, chosen = judgement.reading.table, judgement.chosen
    base, final = bench.ends
    rows = report_rows(reading, {"base": base, "chosen": chosen, "final": final})
    found = differences(reading, chosen, final)
    axes = axes_of(table)
    num_items = _num_items(table, reading.table)
    return Selection(
        run=bench.run.manifest.name,
        weight=reading.weight,
        constraints=constraints,
        chosen=chosen,
        base=base,
        final=final,
        form=table.setting.form,
        curve=table.setting.curve,
        objectives=table.setting.objectives,
        axes=axes,
        yardsticks=dict(reading.yardsticks),
        candidates=judgement.candidates,
        report=rows,
        differences=found,
        optimism=_optimism(judgement, rows["chosen"].utility.estimate),
        num_items=num_items,
        level=LEVEL,
        num_resamples=NUM_RESAMPLES,
        seed=reading.seed,
        verdict=verdict(chosen, final, found),
        notes=(
            *cautions(judgement, constraints),
            *broken_on_report(reading, chosen, base, final, constraints),
            *few_items(num_items),
            *guard_notes(bench.run.path, bench.recipe, _items_used(table, reading.table)),
            *_left_out(bench, table),
        ),
        command=command,
        created=now(),
    )


def _optimism(judgement: Judgement, reported: float) -> float:
    return float(judgement.reading.utilities[judgement.decision.chosen]) - reported


def _num_items(selection: Table, report: Table) -> dict[str, dict[Split, int]]:
    return {
        name: {"selection": len(ids), "report": len(report.setting.item_ids[name])}
        for name, ids in selection.setting.item_ids.items()
    }


def _items_used(selection: Table, report: Table) -> dict[str, tuple[str, ...]]:
    return {
        name: (*ids, *report.setting.item_ids[name])
        for name, ids in selection.setting.item_ids.items()
    }


def _left_out(bench: Bench, table: Table) -> Iterator[str]:
    """Points that were not compared: measured otherwise, or not measured at all."""
    others = strangers(table.setting, bench.recorded)
    if others:
        yield (
            f"{len(others)} measured points were left out, first {others[0]}: other items, "
            "another way to stand, or an objective missing."
        )
    missing = set(anchors(bench.run.steps, bench.section)) - set(table.points)
    if missing:
        yield (
            f"{len(missing)} points that every search measures are not measured yet: "
            "`backtrack search` goes on."
        )
