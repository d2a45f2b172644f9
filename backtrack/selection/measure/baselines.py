"""What users take without a search, measured beside it: rivals of the chosen point.

`checkpoint` and `grid` are points of the path: the best checkpoint, and the best of a plain grid
of alphas. `mean`, `intruder` and `truncated` are not: each is a copy of the live model with other
weights (see `baseline_models`). Their scores are in `baselines.jsonl`, apart from the measurements
of points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backtrack.errors import ObjectiveError
from backtrack.records.selection import Baseline, BaselineMeasurement
from backtrack.run.files import append_line, read_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point
    from backtrack.recipe import SearchSection
    from backtrack.run.directory import Run
    from backtrack.selection.measure.evaluator import Evaluator
    from backtrack.selection.stats.scores import WeightedScores
    from backtrack.selection.stats.table import ScoreTable, SplitSetting

BASELINES = "baselines.jsonl"
ON_THE_PATH = frozenset({"checkpoint", "grid"})
"""Kinds of baselines that are points."""


def on_the_path(weighted: WeightedScores, section: SearchSection, final: Point) -> list[Baseline]:
    """The recipe's baselines that are points: the best of each kind by measured utility."""
    points = weighted.scores.table.points
    grid = {*section.alphas, 1.0}
    candidates = {
        "checkpoint": [p for p in points if p.alpha == 1 and p.profile == "uniform"],
        "grid": [
            p
            for p in points
            if p.is_base or (p.step == final.step and p.profile == "uniform" and p.alpha in grid)
        ],
    }
    baselines: list[Baseline] = []
    for kind in section.baselines:
        if candidates.get(kind):
            best = max(candidates[kind], key=lambda p: weighted.utilities[points.index(p)])
            baselines.append(Baseline.model_validate({"kind": kind, "point": best}))
    return baselines


def off_the_path(
    run: Run, section: SearchSection, *, is_in_process: bool = True
) -> tuple[list[Baseline], list[str]]:
    """The recipe's baselines that are not points, and a note for each one left out.

    Args:
        run: The run.
        section: The recipe's search section.
        is_in_process: Whether the model runs in this process; an engine answers at points only.
    """
    kinds = [kind for kind in section.baselines if kind not in ON_THE_PATH]
    if not is_in_process:
        return [], [
            f"The baseline `{kind}` is left out: it is not a point, and the recipe's engine "
            "answers at points only."
            for kind in kinds
        ]
    method = run.manifest.method.kind
    baselines: list[Baseline] = []
    notes: list[str] = []
    for kind in kinds:
        if kind == "mean" and len(run.steps) < section.mean_of:
            notes.append(
                f"The baseline `mean` is left out: it needs {section.mean_of} checkpoints."
            )
        elif kind == "mean":
            baselines.append(Baseline(kind=kind, steps=run.steps[-section.mean_of :]))
        elif (kind == "intruder" and method == "lora") or (
            kind == "truncated" and method == "full"
        ):
            baselines.append(Baseline(kind=kind, steps=run.steps[-1:]))
        else:
            needed = "LoRA" if kind == "intruder" else "full fine-tuning"
            notes.append(f"The baseline `{kind}` is left out: it is for {needed} only.")
    return baselines, notes


def recorded(
    run: Run, setting: SplitSetting, baselines: Iterable[Baseline]
) -> dict[Baseline, dict[str, NDArray[np.float64]]]:
    """Recorded scores, in the items' order, of the baselines measured on all objectives.

    Returns:
        By baseline and objective's name, [items].
    """
    by_baseline: dict[Baseline, dict[str, NDArray[np.float64]]] = {b: {} for b in baselines}
    for m in read_lines(run.path / BASELINES, BaselineMeasurement):
        if m.baseline in by_baseline and _fits(m, setting):
            name, scores = m.objective.name, dict(zip(m.item_ids, m.scores, strict=True))
            by_baseline[m.baseline][name] = np.array([scores[i] for i in setting.item_ids[name]])
    num_objectives = len(setting.objectives)
    return {b: scores for b, scores in by_baseline.items() if len(scores) == num_objectives}


def _fits(m: BaselineMeasurement, setting: SplitSetting) -> bool:
    """Whether a baseline was measured under a setting, of the checkpoints as they are now."""
    name = m.objective.name
    return (
        m.split == setting.split
        and m.setting == setting.digests.get(name, "none")
        and m.checkpoints == _checkpoints(m.baseline, setting)
        and set(m.item_ids) == set(setting.item_ids[name])
    )


def _checkpoints(baseline: Baseline, setting: SplitSetting) -> tuple[str, ...]:
    return tuple(setting.checkpoints.get(step, "missing") for step in baseline.steps)


def with_rows(
    table: ScoreTable, rows: Sequence[dict[str, NDArray[np.float64]]]
) -> dict[str, NDArray[np.float64]]:
    """The table's scores with a row for each further model appended, [points + rows, items]."""
    return {
        name: np.vstack([scores, *(row[name] for row in rows)])
        for name, scores in table.scores.items()
    }


def measure_missing(
    evaluator: Evaluator, setting: SplitSetting, baselines: Sequence[Baseline]
) -> dict[Baseline, dict[str, NDArray[np.float64]]]:
    """Measure the baselines that are not recorded under a setting; return the scores of all.

    Returns:
        By baseline and objective's name, [items].

    Raises:
        UsageError: A baseline cannot be made from this run.
        ObjectiveError: A score is missing or not finite.
    """
    scores = recorded(evaluator.run, setting, baselines)
    missing = [baseline for baseline in baselines if baseline not in scores]
    for baseline in missing:
        _measure(evaluator, setting, baseline)
    return recorded(evaluator.run, setting, baselines) if missing else scores


def _measure(evaluator: Evaluator, setting: SplitSetting, baseline: Baseline) -> None:
    """Record a baseline's scores on the setting's items."""
    found = evaluator.score_baseline(baseline, setting.item_ids)
    for info in setting.objectives:
        item_ids, (scores, seconds) = setting.item_ids[info.name], found[info.name]
        if len(scores) != len(item_ids) or not np.isfinite(scores).all():
            raise ObjectiveError(
                f"objective {info.name!r} did not give one finite score an item for the "
                f"baseline {baseline.kind!r}. Leave it out of `search.baselines`."
            )
        measurement = BaselineMeasurement(
            baseline=baseline,
            checkpoints=_checkpoints(baseline, setting),
            setting=setting.digests[info.name],
            objective=info,
            split=setting.split,
            item_ids=item_ids,
            scores=scores,
            seconds=seconds,
        )
        append_line(evaluator.run.path / BASELINES, measurement.model_dump_json())
