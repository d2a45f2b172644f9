"""What users do without a search, measured beside it: rivals of the chosen point.

The best checkpoint and the best of a plain alpha grid are points, and measured as such. The others
stand nowhere on the path; each is made in a copy of the live model, from weights the run has:

mean       the trained tensors of the last checkpoints, averaged (an adapter's own parameters)
intruder   PEFT's `reduce_intruder_dimension` on the last LoRA checkpoint, with its defaults
truncated  the last full checkpoint with small singular values of each linear layer's delta cut
           off, at the optimal hard threshold for noise of unknown size (Gavish and Donoho 2014)

Their scores are in `baselines.jsonl`, apart from the measurements of points.
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from backtrack.errors import ObjectiveError, UsageError
from backtrack.point import Point
from backtrack.records.selection import Baseline, BaselineMeasurement
from backtrack.run.directory import append_line, read_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.evaluate.vllm.placement import VllmPlacement
    from backtrack.path.placement import Placement
    from backtrack.recipe import SearchSection
    from backtrack.run.directory import Run
    from backtrack.selection.stats.scores import WeightedScores
    from backtrack.selection.stats.table import ScoreTable, Setting

BASELINES = "baselines.jsonl"
ON_THE_PATH = frozenset({"checkpoint", "grid"})


def on_the_path(weighted: WeightedScores, section: SearchSection, final: Point) -> list[Baseline]:
    """The best checkpoint and the best of the grid by measured utility, those asked for."""
    points = weighted.scores.table.points
    grid = {*section.alphas, 1.0}
    rivals = {
        "checkpoint": [p for p in points if p.alpha == 1 and p.profile == "uniform"],
        "grid": [
            p
            for p in points
            if p.is_base or (p.step == final.step and p.profile == "uniform" and p.alpha in grid)
        ],
    }
    found: list[Baseline] = []
    for kind in section.baselines:
        among = rivals.get(kind)
        if among:
            best = max(among, key=lambda p: weighted.utilities[points.index(p)])
            found.append(Baseline.model_validate({"kind": kind, "point": best}))
    return found


def off_the_path(
    run: Run, section: SearchSection, *, is_served: bool = False
) -> tuple[list[Baseline], list[str]]:
    """Those asked for that are no point, and why some of them are left out.

    Args:
        run: The run.
        section: Asks for them.
        is_served: Whether an engine measures, which is given points only.
    """
    off = [kind for kind in section.baselines if kind not in ON_THE_PATH]
    if is_served:
        return [], [
            f"The baseline `{kind}` is no point, and `engine: vllm` is given no other: left out."
            for kind in off
        ]
    kind_of_run = run.manifest.method.kind
    found: list[Baseline] = []
    notes: list[str] = []
    for kind in off:
        if kind == "mean" and len(run.steps) < section.mean_of:
            notes.append(f"The baseline `mean` needs {section.mean_of} checkpoints: left out.")
        elif kind == "mean":
            found.append(Baseline(kind=kind, steps=run.steps[-section.mean_of :]))
        elif (kind == "intruder" and kind_of_run == "lora") or (
            kind == "truncated" and kind_of_run == "full"
        ):
            found.append(Baseline(kind=kind, steps=run.steps[-1:]))
        else:
            needed = "LoRA" if kind == "intruder" else "full fine-tuning"
            notes.append(f"The baseline `{kind}` is for {needed} only: left out.")
    return found, notes


def recorded(
    run: Run, setting: Setting, baselines: Iterable[Baseline]
) -> dict[Baseline, dict[str, NDArray[np.float64]]]:
    """Scores on record in the items' order, of those baselines that have all objectives."""
    found: dict[Baseline, dict[str, NDArray[np.float64]]] = {b: {} for b in baselines}
    wanted = {o.name: (o.fingerprint, set(setting.item_ids[o.name])) for o in setting.objectives}
    for m in read_lines(run.path / BASELINES, BaselineMeasurement):
        name = m.objective.name
        same = name in wanted and wanted[name] == (m.objective.fingerprint, set(m.item_ids))
        if same and m.baseline in found and (m.form, m.split) == (setting.form, setting.split):
            scores = dict(zip(m.item_ids, m.scores, strict=True))
            found[m.baseline][name] = np.array([scores[i] for i in setting.item_ids[name]])
    return {b: scores for b, scores in found.items() if len(scores) == len(wanted)}


def with_rows(
    table: ScoreTable, rows: Sequence[dict[str, NDArray[np.float64]]]
) -> dict[str, NDArray[np.float64]]:
    """The table's scores with rows of further models below its points."""
    return {
        name: np.vstack([scores, *(row[name] for row in rows)])
        for name, scores in table.scores.items()
    }


def measure_baseline(
    run: Run,
    placement: Placement | VllmPlacement,
    objectives: Sequence[Objective],
    setting: Setting,
    baseline: Baseline,
) -> None:
    """Make a baseline and record its scores under a setting.

    Raises:
        UsageError: It cannot be made of this run.
        ObjectiveError: A score is missing or not finite.
    """
    model = make(run, placement, baseline)
    for objective in objectives:
        item_ids = setting.item_ids[objective.info.name]
        begin = time.perf_counter()
        scores = objective.measure(model, placement.tokenizer, item_ids)
        if len(scores) != len(item_ids) or not np.isfinite(scores).all():
            raise ObjectiveError(
                f"objective {objective.info.name!r} has no finite score for each item at the "
                f"baseline {baseline.kind!r}. Leave it out of `search.baselines`."
            )
        measurement = BaselineMeasurement(
            baseline=baseline,
            objective=objective.info,
            form=placement.form,
            split=setting.split,
            item_ids=item_ids,
            scores=tuple(scores),
            seconds=time.perf_counter() - begin,
        )
        append_line(run.path / BASELINES, measurement.model_dump_json())


def make(run: Run, placement: Any, baseline: Baseline) -> Any:
    """A copy of the live model with the baseline's weights; the placement goes on as it was.

    Raises:
        UsageError: It cannot be made of this run.
    """
    where = placement.point
    try:
        match baseline.kind:
            case "mean":
                return _mean(placement, baseline.steps)
            case "intruder":
                return _intruders_reduced(placement, run.final)
            case "truncated":
                return _truncated(placement, run.final)
        raise UsageError(f"the baseline {baseline.kind!r} is a point: place it.")
    finally:
        placement.place(where)


def _parameters(placement: Placement, point: Point) -> dict[str, Any]:
    placement.place(point)
    return {n: p.detach().float().clone() for n, p in placement.model.named_parameters()}


def _copy_with(placement: Placement, weights: dict[str, Any]) -> Any:
    """A copy of the live model; what is in `weights` is written into it, rounded once."""
    import torch

    model = copy.deepcopy(placement.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    return model


def _mean(placement: Placement, steps: Sequence[int]) -> Any:
    total: dict[str, Any] = {}
    for step in steps:
        for name, weight in _parameters(placement, Point(step=step)).items():
            total[name] = total[name] + weight if name in total else weight
    return _copy_with(placement, {name: weight / len(steps) for name, weight in total.items()})


def _intruders_reduced(placement: Placement, final: Point) -> Any:
    if placement.form != "attached":
        raise UsageError(
            "the baseline `intruder` needs the adapter on the model. Take it out of "
            "`search.baselines`, or use `placement: {form: attached}`."
        )
    from peft.tuners.lora import intruders

    placement.place(final)
    model = copy.deepcopy(placement.model)
    reduce: Any = intruders.reduce_intruder_dimension
    reduce(model, old_adapter_name=model.active_adapter, logging_sink=None)
    return model.eval()


def _truncated(placement: Placement, final: Point) -> Any:
    import torch

    base = _parameters(placement, Point.base())
    tuned = _parameters(placement, final)
    linear = {
        f"{name}.weight"
        for name, module in placement.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    tied = {id(placement.model.get_input_embeddings().weight)}
    names = [n for n, p in placement.model.named_parameters() if n in linear and id(p) not in tied]
    cut = {name: base[name] + truncate(tuned[name] - base[name]) for name in names}
    return _copy_with(placement, tuned | cut)


def truncate(delta: Any) -> Any:
    """A matrix without its singular values below the optimal hard threshold.

    The threshold is the median singular value times 0.56 b^3 - 0.95 b^2 + 1.82 b + 1.43, b being
    the ratio of the matrix's shorter side to its longer one (Gavish and Donoho 2014, equation 5).

    Args:
        delta: [rows, columns], fp32.
    """
    import torch

    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    ratio = min(delta.shape) / max(delta.shape)
    scale = 0.56 * ratio**3 - 0.95 * ratio**2 + 1.82 * ratio + 1.43
    kept = values > scale * values.median()
    return (left[:, kept] * values[kept]) @ right[kept]
