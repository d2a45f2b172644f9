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
from backtrack.records.record import now
from backtrack.records.selection import Constraints, Selection
from backtrack.selection.choice.candidates import (
    Outcome,
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
from backtrack.selection.measure.evaluator import Evaluator
from backtrack.selection.measure.progress import Meter, Progress
from backtrack.selection.search.space import anchors
from backtrack.selection.stats.bootstrap import LEVEL, NUM_RESAMPLES
from backtrack.selection.stats.comparisons import baseline_row, differences, report_rows
from backtrack.selection.stats.scores import WeightedScores, axes_of
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
    from backtrack.selection.stats.table import ScoreTable, Setting

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
    evaluator = Evaluator(run, recipe, placement, objectives)
    selector = _Selector(evaluator, constraints, on_progress, command)
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
    selector = _Selector(Evaluator(run, None, None, None), constraints, on_progress, command)
    found = [selector.choose(weight) for weight in weights]
    run.write_selection(found[0].selection)
    return found


class _Selector:
    """Chooses from what is on record, and measures what the report lacks."""

    def __init__(
        self,
        evaluator: Evaluator,
        constraints: Constraints | None,
        on_progress: OnProgress | None,
        command: str,
    ) -> None:
        self._evaluator = evaluator
        self._section = evaluator.recipe.select if evaluator.recipe else SelectSection()
        asked = self._section.model_dump(exclude={"weight"})
        self._constraints = Constraints(**asked) if constraints is None else constraints
        self._on_progress = on_progress
        self._command = command
        self._sweep: Sweep | None = None

    def choose(self, weight: float | None, *, is_knee: bool = False) -> Choice:
        """Choose, measure the report items, and write the selection."""
        evaluator = self._evaluator
        weight = _require_share(self._section.weight if weight is None else weight)
        while True:
            table = _selection_table(evaluator, self._on_progress)
            if is_knee:
                weight = knee(table, evaluator.run.final, evaluator.section.seed)
            outcome = judge(
                table, evaluator.run.final, weight, self._constraints, evaluator.section.seed
            )
            report = self._report_table(outcome)
            if report is not None:
                break
            # Objectives built now may differ from those on record: choose anew among what fits.
            evaluator.build()
        weighted = WeightedScores(
            report, outcome.weighted.yardsticks, weight, evaluator.section.seed
        )
        rows, left_out = self._baselines(outcome, weighted)
        selection = _record(evaluator, outcome, weighted, self._constraints, self._command)
        knee_note = [_KNEE.format(weight=weight)] if is_knee else []
        selection = selection.model_copy(
            update={
                "baselines": rows,
                "notes": (*knee_note, *selection.notes, *left_out),
                "ranges": weight_ranges(outcome, self._constraints),
                "hypervolume": front_hypervolume(outcome),
            }
        )
        evaluator.run.write_selection(selection)
        # The answers to all weights are the same whichever of them comes first.
        self._sweep = self._sweep or sweep(outcome, selection.created)
        evaluator.run.write_sweep(self._sweep)
        page = evaluator.run.path / "report.html"
        return Choice(selection.chosen, selection.tied, selection, page)

    def _report_table(self, outcome: Outcome) -> ScoreTable | None:
        """Scores on the report items; none where they are not on record and nothing is built."""
        evaluator = self._evaluator
        rivals = on_the_path(outcome.weighted, evaluator.section, evaluator.run.final)
        asked = [*evaluator.ends, outcome.chosen, *(b.point for b in rivals if b.point)]
        points = tuple(dict.fromkeys(asked))
        off, _ = off_the_path(
            evaluator.run, evaluator.section, is_in_process=evaluator.is_in_process
        )
        if evaluator.is_built:
            self._measure_report(points, off)
            return evaluator.table(evaluator.setting("report"))
        chosen_under = outcome.weighted.table.setting
        setting = evaluator.standing("report", like=chosen_under)
        if setting is None or _overlap(setting, chosen_under):
            return None
        table = evaluator.table(setting)
        is_there = table.holds(points) and len(recorded(evaluator.run, setting, off)) == len(off)
        return table if is_there else None

    def _measure_report(self, points: Sequence[Point], off: Sequence[Baseline]) -> None:
        """Measure what the report items lack: points, and baselines off the path."""
        evaluator = self._evaluator
        num_models = len(points) + len(off)
        meter = Meter(num_models * evaluator.num_items("report"), self._on_progress)
        evaluator.expect(points)
        for point in points:
            if not evaluator.table(evaluator.setting("report")).holds([point]):
                evaluator.measure(point, "report", "report", meter)
        setting = evaluator.setting("report")
        there = recorded(evaluator.run, setting, off)
        for baseline in off:
            if baseline not in there:
                measure_baseline(
                    evaluator.run, evaluator.engine, evaluator.objectives, setting, baseline
                )

    def _baselines(
        self, outcome: Outcome, report: WeightedScores
    ) -> tuple[tuple[BaselineRow, ...], list[str]]:
        """Rows of the baselines on the report items, and why some are left out."""
        evaluator, table = self._evaluator, report.table
        off, left_out = off_the_path(
            evaluator.run, evaluator.section, is_in_process=evaluator.is_in_process
        )
        there = recorded(evaluator.run, table.setting, off)
        scores = with_rows(table, list(there.values()))
        joined = replace(report, table=replace(table, scores=scores))
        on = on_the_path(outcome.weighted, evaluator.section, evaluator.run.final)
        columns = {b: table.column(b.point) for b in on if b.point is not None}
        columns |= {b: len(table.points) + i for i, b in enumerate(there)}
        chosen = table.column(outcome.chosen)
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


def _selection_table(evaluator: Evaluator, on_progress: OnProgress | None) -> ScoreTable:
    setting = evaluator.standing("selection")
    if setting is not None:
        table = evaluator.table(setting)
        if table.knows(evaluator.ends):
            return table
    # Optuna takes half a second to import and is not needed to choose again.
    from backtrack.selection.search.driver import search

    search(
        evaluator.run,
        placement=evaluator.engine,
        recipe=evaluator.recipe,
        objectives=evaluator.objectives,
        on_progress=on_progress,
    )
    evaluator.reload()
    return evaluator.table(evaluator.setting("selection"))


def _overlap(setting: Setting, other: Setting) -> bool:
    return any(set(ids) & set(other.item_ids[name]) for name, ids in setting.item_ids.items())


def _record(
    evaluator: Evaluator,
    outcome: Outcome,
    weighted: WeightedScores,
    constraints: Constraints,
    command: str,
) -> Selection:
    table, chosen = outcome.weighted.table, outcome.chosen
    base, final = evaluator.ends
    rows = report_rows(weighted, {"base": base, "chosen": chosen, "final": final})
    found = differences(weighted, chosen, final)
    axes = axes_of(table)
    num_items = _num_items(table, weighted.table)
    return Selection(
        run=evaluator.run.manifest.name,
        weight=weighted.weight,
        constraints=constraints,
        chosen=chosen,
        base=base,
        final=final,
        form=table.setting.form,
        curve=table.setting.curve,
        objectives=table.setting.objectives,
        axes=axes,
        yardsticks=dict(weighted.yardsticks),
        candidates=outcome.candidates,
        report=rows,
        differences=found,
        optimism=_optimism(outcome, rows["chosen"].utility.estimate),
        num_items=num_items,
        level=LEVEL,
        num_resamples=NUM_RESAMPLES,
        seed=weighted.seed,
        verdict=verdict(chosen, final, found),
        notes=(
            *cautions(outcome, constraints),
            *broken_on_report(weighted, chosen, base, final, constraints),
            *few_items(num_items),
            *guard_notes(evaluator.run.path, evaluator.recipe, _items_used(table, weighted.table)),
            *_left_out(evaluator, table),
        ),
        command=command,
        created=now(),
    )


def _optimism(outcome: Outcome, reported: float) -> float:
    return float(outcome.weighted.utilities[outcome.decision.chosen]) - reported


def _num_items(selection: ScoreTable, report: ScoreTable) -> dict[str, dict[Split, int]]:
    return {
        name: {"selection": len(ids), "report": len(report.setting.item_ids[name])}
        for name, ids in selection.setting.item_ids.items()
    }


def _items_used(selection: ScoreTable, report: ScoreTable) -> dict[str, tuple[str, ...]]:
    return {
        name: (*ids, *report.setting.item_ids[name])
        for name, ids in selection.setting.item_ids.items()
    }


def _left_out(evaluator: Evaluator, table: ScoreTable) -> Iterator[str]:
    """Points that were not compared: measured otherwise, or not measured at all."""
    others = strangers(table.setting, evaluator.recorded)
    if others:
        yield (
            f"{len(others)} measured points were left out, first {others[0]}: other items, "
            "another way to stand, or an objective missing."
        )
    missing = set(anchors(evaluator.run.steps, evaluator.section)) - set(table.points)
    if missing:
        yield (
            f"{len(missing)} points that every search measures are not measured yet: "
            "`backtrack search` goes on."
        )
