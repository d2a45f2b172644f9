"""Choose a point and say how sure that is.

Promised: what is on record is used as it stands, so choosing again under another weight or other
constraints loads no model where base, choice and final checkpoint are on record for the report
items. The same measurements and seed give the same selection but for its time.
Not promised: that documents changed under the same name are noticed before something is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backtrack.errors import UsageError
from backtrack.recipe import SelectSection
from backtrack.records import Constraints, Selection
from backtrack.run.directory import now
from backtrack.selection.bench import Bench
from backtrack.selection.judging import (
    Judgement,
    Reading,
    axes_of,
    difference,
    judge,
    report_rows,
)
from backtrack.selection.measured import strangers
from backtrack.selection.progress import Meter, Progress
from backtrack.selection.space import anchors
from backtrack.selection.statistics import LEVEL, NUM_RESAMPLES
from backtrack.selection.wording import broken_on_report, cautions, few_items, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from backtrack.evaluate.objective import Objective
    from backtrack.path.placement import Placement
    from backtrack.point import Point
    from backtrack.recipe import Recipe
    from backtrack.records import Split
    from backtrack.run.directory import Run
    from backtrack.selection.measured import Setting, Table

    OnProgress = Callable[[Progress], None]

__all__ = ["Choice", "Progress", "select"]


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
    constraints: Constraints | None = None,
    recipe: Recipe | None = None,
    placement: Placement | None = None,
    objectives: Sequence[Objective] | None = None,
    on_progress: OnProgress | None = None,
    command: str = "",
) -> Choice:
    """Choose the point that serves a weighting best, and write `selection.json`.

    Searches first where base and final checkpoint are not measured. Then measures base, choice and
    final checkpoint on the report items, unless they are on record. The rule: see `choosing`.

    Args:
        run: A run with at least one checkpoint.
        weight: Of the target in the utility, 0 to 1; the recipe's if not given.
        constraints: Bounds, in points; the recipe's if not given.
        recipe: What to measure; the run's own if not given.
        placement: The run's live model; loaded if not given and something must be measured.
        objectives: Ready-made ones, in place of the recipe's.
        on_progress: Called before each objective and after each point.
        command: What the user typed, for the record.

    Raises:
        UsageError: The weight is out of range, or nothing says what to measure.
        SelectionError: No point meets the constraints.
        ObjectiveError: An objective cannot be measured. What was measured stays.
    """
    bench = Bench(run, recipe, placement, objectives)
    section = bench.recipe.select if bench.recipe else SelectSection()
    weight = _require_share(section.weight if weight is None else weight)
    if constraints is None:
        constraints = Constraints(**section.model_dump(exclude={"weight"}))
    while True:
        table = _selection_table(bench, on_progress)
        judgement = judge(table, run.final, weight, constraints, bench.section.seed)
        report = _report_table(bench, table.setting, judgement.chosen, on_progress)
        if report is not None:
            break
        # Objectives built now may differ from those on record: choose anew among what fits them.
        bench.build()
    reading = Reading(report, judgement.reading.yardsticks, weight, bench.section.seed)
    selection = _record(bench, judgement, reading, constraints, command)
    run.write_selection(selection)
    return Choice(selection.chosen, selection.tied, selection, run.path / "report.html")


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
        if table.holds(bench.ends):
            return table
    # Optuna takes half a second to import and is not needed to choose again.
    from backtrack.selection.searching import search

    search(
        bench.run,
        placement=bench.placement,
        recipe=bench.recipe,
        objectives=bench.objectives,
        on_progress=on_progress,
    )
    bench.reload()
    return bench.table(bench.setting("selection"))


def _report_table(
    bench: Bench, chosen_under: Setting, chosen: Point, on_progress: OnProgress | None
) -> Table | None:
    """Scores on the report items; none where they are not on record and nothing is built."""
    points = tuple(dict.fromkeys([*bench.ends, chosen]))
    if bench.is_built:
        meter = Meter(len(points), on_progress)
        for point in points:
            bench.measure(point, "report", "report", meter)
        return bench.table(bench.setting("report"))
    setting = bench.standing("report", like=chosen_under)
    if setting is None or _overlap(setting, chosen_under):
        return None
    table = bench.table(setting)
    return table if table.holds(points) else None


def _overlap(setting: Setting, other: Setting) -> bool:
    return any(set(ids) & set(other.item_ids[name]) for name, ids in setting.item_ids.items())


def _record(
    bench: Bench, judgement: Judgement, reading: Reading, constraints: Constraints, command: str
) -> Selection:
    table, chosen = judgement.reading.table, judgement.chosen
    base, final = bench.ends
    rows = report_rows(reading, {"base": base, "chosen": chosen, "final": final})
    differences = (
        difference(reading, chosen, base, "base"),
        difference(reading, chosen, final, "final"),
    )
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
        differences=differences,
        optimism=_optimism(judgement, rows["chosen"].utility.estimate),
        num_items=num_items,
        level=LEVEL,
        num_resamples=NUM_RESAMPLES,
        seed=reading.seed,
        verdict=verdict(chosen, final, differences),
        notes=(
            *cautions(judgement, constraints),
            *broken_on_report(reading, chosen, base, final, constraints),
            *few_items(num_items),
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
