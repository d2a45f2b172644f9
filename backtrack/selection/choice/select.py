"""Choose a point and say how certain that is.

Promised: a point is chosen when the search that was begun is finished, or as things are where that
is asked for, and then it is said what is missing. Recorded measurements are used as they are.
Choosing again under another weight or other bounds loads no model if base, choice and final
checkpoint are recorded for the report items.
The same measurements and seed give the same selection except for its time.
Not promised: that documents changed under the same name are noticed before something is measured.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backtrack import formatting
from backtrack.errors import SelectionError, UsageError
from backtrack.recipe import SelectSection
from backtrack.records.record import now
from backtrack.records.search import Evaluation
from backtrack.records.selection import Constraints, Selection
from backtrack.selection.choice.candidates import choose_point, front_hypervolume
from backtrack.selection.choice.notebook import as_html, candidates_frame, in_one_line
from backtrack.selection.choice.sweep import answer_weights, make_sweep, weight_ranges
from backtrack.selection.choice.verdict import (
    broken_on_report,
    cautions,
    few_items,
    knee_note,
    verdict,
)
from backtrack.selection.measure.baselines import (
    measure_missing,
    off_the_path,
    on_the_path,
    recorded,
    with_rows,
)
from backtrack.selection.measure.contamination import contamination_notes
from backtrack.selection.measure.evaluator import Evaluator
from backtrack.selection.measure.progress import Meter, Progress
from backtrack.selection.search.finishing import finish, unfinished
from backtrack.selection.stats.bootstrap import LEVEL, NUM_RESAMPLES
from backtrack.selection.stats.bounds import missed
from backtrack.selection.stats.comparisons import baseline_row, differences, report_rows
from backtrack.selection.stats.scores import RoleScores, axes_of
from backtrack.selection.stats.table import points_left_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.path.placement import Placement
    from backtrack.point import Point
    from backtrack.recipe import ClusterSection, Recipe
    from backtrack.records import Split
    from backtrack.records.selection import Baseline, BaselineRow, ReportRow
    from backtrack.records.sweep import Sweep
    from backtrack.run.directory import Run
    from backtrack.selection.choice.candidates import Outcome
    from backtrack.selection.choice.sweep import Answer
    from backtrack.selection.stats.comparisons import Compared
    from backtrack.selection.stats.scores import WeightedScores
    from backtrack.selection.stats.table import ScoreTable

    OnProgress = Callable[[Progress], None]

__all__ = ["Choice", "Progress", "select", "select_each"]


@dataclass(frozen=True)
class Choice:
    """The chosen point.

    Attributes:
        point: The point.
        tied: Points that cannot be told apart from the one of highest utility.
        selection: The full record, as written to `selection.json`.
        report: Path of the run's report.
    """

    point: Point
    tied: tuple[Point, ...]
    selection: Selection
    report: Path

    def to_frame(self) -> pd.DataFrame:
        """Every measured point as a row; see `notebook.candidates_frame`."""
        return candidates_frame(self.selection)

    def __repr__(self) -> str:
        return f"Choice({in_one_line(self.selection)})"

    def _repr_html_(self) -> str:
        return as_html(self.selection, self.report.parent / "figures" / "plane.png")


def select(  # noqa: PLR0913  # the front door: every argument but the run is optional
    run: Run,
    *,
    weight: float | None = None,
    is_knee: bool = False,
    is_cautious: bool | None = None,
    constraints: Constraints | None = None,
    recipe: Recipe | None = None,
    placement: Placement | None = None,
    objectives: Sequence[Objective] | None = None,
    cluster: ClusterSection | None = None,
    is_to_finish: bool = True,
    on_progress: OnProgress | None = None,
    command: str = "",
) -> Choice:
    """Choose the point that serves a weighting best, and write `selection.json`.

    Finishes the search that was begun, or begins the recipe's. Then measures base, choice, final
    checkpoint and the recipe's baselines on the report items, unless they are recorded. The rule
    is described in `backtrack.selection.choice.rule`.

    Args:
        run: A run with at least one checkpoint.
        weight: Weight of the target in the utility, 0 to 1; the recipe's if not given.
        is_knee: Use the weight at which both ends of the front have the same utility, so that the
            choice is the knee of the front.
        is_cautious: Choose the base wherever the items cannot tell it from the top; the recipe's
            if not given.
        constraints: Bounds, in points; the recipe's if not given.
        recipe: What to measure from now on; what the run is measured by if not given.
        placement: The run's live model; loaded if not given and something must be measured.
        objectives: Objectives in place of the recipe's.
        cluster: By how many processes, and where, it is measured; the recipe's if not given.
        is_to_finish: Whether to search first; else the point is chosen from what is recorded.
        on_progress: Called before each objective and after each point.
        command: The command the user typed, for the record.

    Returns:
        The point, the points tied with the best, and the full record.

    Raises:
        UsageError: The weight is out of range, or no objective is specified.
        SelectionError: No point meets the bounds; or base or final checkpoint is not
            measured and must not be.
        ObjectiveError: An objective cannot be measured. Finished measurements are kept.
    """
    evaluator = Evaluator(run, recipe, placement, objectives, cluster)
    selector = _Selector(
        evaluator,
        constraints,
        on_progress,
        command,
        is_cautious=is_cautious,
        is_to_finish=is_to_finish,
    )
    with closing(evaluator):
        return selector.choose(weight, is_knee=is_knee)


def select_each(  # noqa: PLR0913  # as `select`
    run: Run,
    weights: Sequence[float],
    *,
    is_cautious: bool | None = None,
    constraints: Constraints | None = None,
    cluster: ClusterSection | None = None,
    is_to_finish: bool = True,
    on_progress: OnProgress | None = None,
    command: str = "",
) -> list[Choice]:
    """Run `select` for several weights, loading at most one model.

    `selection.json` and `sweep.json` hold the choice at the first weight.

    Raises:
        UsageError: No weight is given, or one is out of range.
        SelectionError: No point meets the bounds.
        ObjectiveError: An objective cannot be measured. Finished measurements are kept.
    """
    if not weights:
        raise UsageError("give at least one weight.")
    for weight in weights:
        _require_share(weight)
    evaluator = Evaluator(run, None, None, None, cluster)
    selector = _Selector(
        evaluator,
        constraints,
        on_progress,
        command,
        is_cautious=is_cautious,
        is_to_finish=is_to_finish,
    )
    with closing(evaluator):
        first = selector.choose(weights[0])
        sweep = selector.sweep
        others = [selector.choose(weight) for weight in weights[1:]]
    run.write_selection(first.selection)
    run.write_sweep(sweep)
    return [first, *others]


@dataclass(frozen=True)
class _Report:
    """Scores on the report items.

    Attributes:
        table: Base, chosen point, final checkpoint and the baselines that are points.
        on_path: Baselines that are points.
        off_path: Scores of the baselines that are not, by objective's name, [items].
    """

    table: ScoreTable
    on_path: Sequence[Baseline]
    off_path: Mapping[Baseline, dict[str, NDArray[np.float64]]]


class _Selector:
    """Choose from recorded measurements, and measure what the report lacks.

    Attributes:
        sweep: The sweep of the first choice; None if there are too many candidates.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        constraints: Constraints | None,
        on_progress: OnProgress | None,
        command: str,
        *,
        is_cautious: bool | None,
        is_to_finish: bool,
    ) -> None:
        self.sweep: Sweep | None = None
        self._is_to_finish = is_to_finish
        self._evaluator = evaluator
        self._section = evaluator.recipe.select if evaluator.recipe else SelectSection()
        self._is_cautious = self._section.cautious if is_cautious is None else is_cautious
        defaults = self._section.model_dump(exclude={"weight", "cautious"})
        self._constraints = Constraints(**defaults) if constraints is None else constraints
        self._on_progress = on_progress
        self._command = command
        self._off_path, self._left_out = off_the_path(
            evaluator.run, evaluator.section, is_in_process=evaluator.is_in_process
        )
        self._answers: dict[float, Answer] = {}

    def choose(self, weight: float | None, *, is_knee: bool = False) -> Choice:
        """Choose a point, measure missing report items, write selection and sweep."""
        run = self._evaluator.run
        weight = _require_share(self._section.weight if weight is None else weight)
        outcome = self._choose_point(weight, is_knee=is_knee)
        report = self._report(outcome)
        while report is None:
            # Objectives built now may differ from the recorded ones, and with them the table.
            self._evaluator.build()
            self._answers = {}
            outcome = self._choose_point(weight, is_knee=is_knee)
            report = self._report(outcome)
        created = now()
        if not self._answers:
            # The answers at all weights serve each choice from the same table.
            self._answers = answer_weights(outcome, is_cautious=self._is_cautious)
            self.sweep = make_sweep(outcome, self._answers, created)
        selection = self._record(outcome, report, created, is_knee=is_knee)
        run.save_choosing()
        run.write_selection(selection)
        run.write_sweep(self.sweep)
        return Choice(selection.chosen, selection.tied, selection, run.path / "report.html")

    def _choose_point(self, weight: float, *, is_knee: bool) -> Outcome:
        evaluator = self._evaluator
        final, seed = evaluator.run.final, evaluator.section.seed
        table = self._table()
        scores = RoleScores(table, seed)
        asked = None if is_knee else weight
        return choose_point(scores, final, asked, self._constraints, is_cautious=self._is_cautious)

    def _table(self) -> ScoreTable:
        """Scores on the selection items, when the search is finished unless it must not be."""
        evaluator = self._evaluator
        if self._is_to_finish:
            finish(evaluator, self._on_progress)
        setting = evaluator.find_setting("selection")
        table = None if setting is None else evaluator.table(setting)
        if table is None or not table.knows(evaluator.ends):
            raise SelectionError(
                f"{evaluator.run.path}: base and final checkpoint are not measured by this "
                "recipe, so there is nothing to choose from. Search first, or leave out --as-is."
            )
        return table

    def _report(self, outcome: Outcome) -> _Report | None:
        """Read or measure the report items; None if they are not recorded and nothing is built."""
        evaluator = self._evaluator
        on_path = on_the_path(outcome.weighted, evaluator.section, evaluator.run.final)
        baseline_points = [baseline.point for baseline in on_path if baseline.point]
        points = tuple(dict.fromkeys([*evaluator.ends, outcome.chosen, *baseline_points]))
        if evaluator.is_built:
            off_path = self._measure_report(points)
            return _Report(evaluator.table(evaluator.setting("report")), on_path, off_path)
        setting = evaluator.find_setting("report")
        if setting is None:
            return None
        table = evaluator.table(setting)
        off_path = recorded(evaluator.run, setting, self._off_path)
        is_recorded = table.holds(points) and len(off_path) == len(self._off_path)
        return _Report(table, on_path, off_path) if is_recorded else None

    def _measure_report(
        self, points: Sequence[Point]
    ) -> dict[Baseline, dict[str, NDArray[np.float64]]]:
        """Measure missing report items; return the scores of the baselines that are no points."""
        evaluator = self._evaluator
        num_items = sum(evaluator.missing_items(point, "report") for point in points)
        meter = Meter(num_items, self._on_progress)
        setting = evaluator.setting("report")
        table = evaluator.table(setting)
        missing = [Evaluation(p, None, "report") for p in points if not table.holds([p])]
        evaluator.measure(missing, "report", meter)
        return measure_missing(evaluator, setting, self._off_path)

    def _record(
        self, outcome: Outcome, report: _Report, created: str, *, is_knee: bool
    ) -> Selection:
        evaluator, table, chosen = self._evaluator, outcome.scores.table, outcome.chosen
        base, final = evaluator.ends
        weight, seed = outcome.weighted.weight, evaluator.section.seed
        scores = RoleScores(report.table, seed)
        weighted = scores.at(weight)
        rows = report_rows(weighted, {"base": base, "chosen": chosen, "final": final})
        compared = differences(weighted, chosen, final)
        num_items = _num_items(table, report.table)
        bounded = table.setting.objectives, self._constraints
        return Selection(
            run=evaluator.run.manifest.name,
            weight=weight,
            constraints=self._constraints,
            chosen=chosen,
            base=base,
            final=final,
            form=table.setting.form,
            curve=table.setting.curve,
            settings=dict(table.setting.digests),
            checkpoints=_checkpoints(table),
            changes=evaluator.run.choosing.changes if evaluator.run.choosing else (),
            objectives=table.setting.objectives,
            axes=axes_of(table),
            yardsticks=dict(report.table.yardsticks),
            candidates=outcome.candidates,
            report=rows,
            differences=compared,
            optimism=_optimism(outcome, rows),
            num_items=num_items,
            level=LEVEL,
            num_resamples=NUM_RESAMPLES,
            seed=seed,
            verdict=verdict(chosen, final, compared, outcome.cautious),
            notes=(
                *evaluator.run.manifest.notes,
                *([knee_note(outcome)] if is_knee else []),
                *cautions(outcome, self._constraints),
                *broken_on_report(weighted, chosen, base, final, self._constraints),
                *few_items([table.setting, report.table.setting]),
                *contamination_notes(
                    evaluator.run.path, evaluator.recipe, _item_ids(table, report.table)
                ),
                *unfinished(evaluator, table),
                *_points_left_out(evaluator, table),
                *evaluator.setting_notes(),
                *self._left_out,
            ),
            baselines=tuple(
                row.model_copy(update={"misses": missed(row, rows, *bounded)})
                for row in _baseline_rows(report, weighted, chosen)
            ),
            ranges=weight_ranges(outcome, self._answers),
            hypervolume=front_hypervolume(outcome),
            command=self._command,
            created=created,
            is_cautious=self._is_cautious,
            cautious=outcome.cautious,
        )


def _require_share(weight: float) -> float:
    if not 0 <= weight <= 1:
        raise UsageError(
            f"the weight is the target's share of the utility, from 0 to 1; got {weight:g}. "
            "Give --weight 0.6 on the command line, or `select: {weight: 0.6}` in the recipe."
        )
    return weight


def _baseline_rows(
    report: _Report, weighted: WeightedScores, chosen: Point
) -> tuple[BaselineRow, ...]:
    """Compare the baselines with the chosen point on the report items."""
    table = report.table
    columns = {b: table.column(b.point) for b in report.on_path if b.point is not None}
    columns |= {b: column for column, b in enumerate(report.off_path, start=len(table.points))}
    joined = replace(table, scores=with_rows(table, list(report.off_path.values())))
    rows = replace(weighted.scores, table=joined).at(weighted.weight)
    chosen_column = table.column(chosen)
    return tuple(baseline_row(rows, b, column, chosen_column) for b, column in columns.items())


def _optimism(outcome: Outcome, rows: Mapping[Compared, ReportRow]) -> float:
    """Compute the gain over the base on selection items minus that on report items."""
    utilities = outcome.weighted.utilities
    gain = float(utilities[outcome.decision.chosen] - utilities[outcome.base])
    return gain - (rows["chosen"].utility.estimate - rows["base"].utility.estimate)


def _num_items(selection: ScoreTable, report: ScoreTable) -> dict[str, dict[Split, int]]:
    return {
        name: {"selection": len(ids), "report": len(report.setting.item_ids[name])}
        for name, ids in selection.setting.item_ids.items()
    }


def _checkpoints(table: ScoreTable) -> dict[int, str]:
    return {p.step: table.setting.checkpoint_of(p) for p in table.points if not p.is_base}


def _item_ids(selection: ScoreTable, report: ScoreTable) -> dict[str, tuple[str, ...]]:
    return {
        name: (*ids, *report.setting.item_ids[name])
        for name, ids in selection.setting.item_ids.items()
    }


def _points_left_out(evaluator: Evaluator, table: ScoreTable) -> Iterator[str]:
    """Say which measured points were not compared."""
    others = points_left_out(table.setting, evaluator.recorded)
    if others:
        yield (
            f"{len(others)} measured points were left out, first {others[0]}: measured under "
            "another setting, from a checkpoint that was replaced, or without one of the "
            f"objectives. {formatting.command('runs', evaluator.run.path, '--settings')} lists "
            "them."
        )
