"""Models of the baselines that are not points, each a copy of the live model with other weights.

mean       uniform average of the last checkpoints' trained tensors, or of their adapters'
           parameters
intruder   PEFT's `reduce_intruder_dimension` on the last LoRA checkpoint, with its defaults
truncated  truncated SVD of each linear layer's delta in the last full checkpoint, at the optimal
           hard threshold for noise of unknown size (Gavish and Donoho 2014)
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from backtrack.errors import UsageError
from backtrack.point import Point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.path.placement import Placement
    from backtrack.records.selection import Baseline
    from backtrack.run.directory import Run


def make_baseline_model(run: Run, placement: Any, baseline: Baseline) -> Any:
    """A copy of the live model with the baseline's weights; the placement returns to its point.

    Raises:
        UsageError: The baseline cannot be made from this run.
    """
    before = placement.point
    try:
        match baseline.kind:
            case "mean":
                return _average_checkpoints(placement, baseline.steps)
            case "intruder":
                return _reduce_intruders(placement, run.final)
            case "truncated":
                return _truncate_delta(placement, run.final)
        raise UsageError(f"the baseline {baseline.kind!r} is a point: it needs no model.")
    finally:
        placement.place(before)


def _average_checkpoints(placement: Placement, steps: Sequence[int]) -> Any:
    total: dict[str, Any] = {}
    for step in steps:
        for name, weight in _weights_at(placement, Point(step=step)).items():
            total[name] = total[name] + weight if name in total else weight
    return _copy_with(placement, {name: weight / len(steps) for name, weight in total.items()})


def _reduce_intruders(placement: Placement, final: Point) -> Any:
    if placement.form != "attached":
        raise UsageError(
            "the baseline `intruder` needs an attached adapter. Remove it from "
            "`search.baselines`, or set `placement: {form: attached}`."
        )
    from peft.tuners.lora import intruders

    placement.place(final)
    model = copy.deepcopy(placement.model)
    reduce: Any = intruders.reduce_intruder_dimension
    reduce(model, old_adapter_name=model.active_adapter, logging_sink=None)
    return model.eval()


def _truncate_delta(placement: Placement, final: Point) -> Any:
    import torch

    base = _weights_at(placement, Point.base())
    tuned = _weights_at(placement, final)
    linear = {
        f"{name}.weight"
        for name, module in placement.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    # The embedding is not truncated, nor an output layer tied to it.
    tied = {id(placement.model.get_input_embeddings().weight)}
    names = [n for n, p in placement.model.named_parameters() if n in linear and id(p) not in tied]
    truncated = {name: base[name] + truncate_svd(tuned[name] - base[name]) for name in names}
    return _copy_with(placement, tuned | truncated)


def truncate_svd(delta: Any) -> Any:
    """Remove a matrix's singular values below the optimal hard threshold.

    The threshold is the median singular value times 0.56 b^3 - 0.95 b^2 + 1.82 b + 1.43, b being
    the ratio of the matrix's shorter side to its longer one (Gavish and Donoho 2014, equation 5).

    Args:
        delta: [rows, columns], fp32.
    """
    import torch

    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    ratio = min(delta.shape) / max(delta.shape)
    scale = 0.56 * ratio**3 - 0.95 * ratio**2 + 1.82 * ratio + 1.43
    is_above = values > scale * values.median()
    return (left[:, is_above] * values[is_above]) @ right[is_above]


def _weights_at(placement: Placement, point: Point) -> dict[str, Any]:
    """Copies of the live model's parameters at a point, in fp32, by name."""
    placement.place(point)
    return {n: p.detach().float().clone() for n, p in placement.model.named_parameters()}


def _copy_with(placement: Placement, weights: dict[str, Any]) -> Any:
    """A copy of the live model with `weights` written into it, rounded once."""
    import torch

    model = copy.deepcopy(placement.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    return model
