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
    from collections.abc import Iterable, Iterator, Sequence

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
        placement.place(Point(step=step))
        for name, live in placement.moving.items():
            weight = live.detach().float()
            total[name] = total[name].add_(weight) if name in total else weight.clone()
    return _copy_with(placement, ((name, weight / len(steps)) for name, weight in total.items()))


def _reduce_intruders(placement: Placement, final: Point) -> Any:
    if placement.form != "attached":
        raise UsageError(
            "the baseline `intruder` needs an attached adapter. Remove it from "
            "`search.baselines`, or set `placement: {form: attached}`."
        )
    from peft.tuners.lora import intruders

    placement.place(final)
    model = _copy_with(placement, ())
    reduce: Any = intruders.reduce_intruder_dimension
    reduce(model, old_adapter_name=model.active_adapter, logging_sink=None)
    return model


def _truncate_delta(placement: Placement, final: Point) -> Any:
    import torch

    moving = placement.moving
    linear = {
        f"{name}.weight"
        for name, module in placement.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    # The embedding is not truncated, nor an output layer tied to it.
    tied = placement.model.get_input_embeddings().weight
    names = [n for n, live in moving.items() if n in linear and live is not tied]
    placement.place(Point.base())
    base = {name: moving[name].detach().clone() for name in names}
    placement.place(final)

    def truncated() -> Iterator[tuple[str, Any]]:
        for name, start in base.items():
            wide = start.float()
            yield name, wide + truncate_svd(moving[name].detach().float() - wide)

    return _copy_with(placement, truncated())


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


def _copy_with(placement: Placement, weights: Iterable[tuple[str, Any]]) -> Any:
    """A copy of the live model where it is, with `weights` written into it, rounded once.

    The copy shares what does not move: that of an attached adapter has the adapter's size.
    """
    import torch

    moving = {id(live) for live in placement.moving.values()}
    still = [p for p in placement.model.parameters() if id(p) not in moving]
    model = copy.deepcopy(placement.model, {id(parameter): parameter for parameter in still})
    copies = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in weights:
            copies[name].copy_(weight)
    return model.eval()
