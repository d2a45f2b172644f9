"""Run prompts through a placed model and collect inputs and outputs of its modules by hooks.

Padding is left out of every sum. Modules with the same input tensor (queries, keys and values;
gate and up) share one set of sums.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from backtrack.diagnose.activations import Pairs
from backtrack.diagnose.drift import Moments
from backtrack.errors import UsageError
from backtrack.point import Point

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from backtrack.diagnose.modules import LinearModule
    from backtrack.diagnose.prompts import Prompts
    from backtrack.path.placement import Placement

    OnTensor = Callable[[str, Tensor], None]

BATCH_PROMPTS = 32


def input_moments(
    placement: Placement, modules: Sequence[LinearModule], prompts: Prompts
) -> dict[str, Moments]:
    """Second moments of each module's inputs in the base, by its name.

    Args:
        placement: The model, placed at the base.
        modules: The modules.
        prompts: The prompts.

    Raises:
        UsageError: A module was not called.
    """
    moments: dict[str, Moments] = {}
    leaders: dict[str, str] = {}
    # Modules that share an input are called one after the other: only the last one is kept.
    latest: list[tuple[Tensor, str]] = []

    def add(name: str, inputs: Tensor) -> None:
        if name not in leaders:
            leaders[name] = next((other for tensor, other in latest if tensor is inputs), name)
            moments.setdefault(leaders[name], Moments())
        if leaders[name] == name:
            latest[:] = [(inputs, name)]
            moments[name].add(_rows(inputs, mask))

    with _hooked(modules, add, is_input=True), torch.no_grad():
        for ids, mask in prompts.batches(BATCH_PROMPTS, placement.model.device):
            _forward(placement.model, ids, mask)
            latest.clear()
    unused = [m.name for m in modules if m.name not in leaders]
    if unused:
        raise UsageError(
            f"{len(unused)} modules had no input, first {unused[0]!r}: the model does not use "
            "them on these prompts. Choose the other modules with --modules."
        )
    return {module.name: moments[leaders[module.name]] for module in modules}


def output_pairs(
    placement: Placement,
    modules: Sequence[LinearModule],
    prompts: Prompts,
    points: Sequence[Point],
) -> dict[str, Pairs]:
    """Each module's outputs in the base paired with those at points, by its name.

    Args:
        placement: The model; it is left at the last point.
        modules: The modules.
        prompts: The prompts.
        points: The points.
    """
    pairs = {module.name: Pairs(len(points)) for module in modules}
    with torch.no_grad():
        for ids, mask in prompts.batches(BATCH_PROMPTS, placement.model.device):
            by_point = [
                _outputs(placement, modules, p, ids, mask) for p in (Point.base(), *points)
            ]
            for name, pair in pairs.items():
                start, *ends = (outputs[name] for outputs in by_point)
                pair.add(start, ends)
    return pairs


def _outputs(
    placement: Placement,
    modules: Sequence[LinearModule],
    point: Point,
    ids: Tensor,
    mask: Tensor,
) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}

    def add(name: str, tensor: Tensor) -> None:
        outputs[name] = _rows(tensor, mask)

    placement.place(point)
    with _hooked(modules, add, is_input=False):
        _forward(placement.model, ids, mask)
    return outputs


@contextmanager
def _hooked(
    modules: Sequence[LinearModule], on_tensor: OnTensor, *, is_input: bool
) -> Iterator[None]:
    """Call `on_tensor` with each module's name and its input, or output, in every forward pass."""

    def hook_of(name: str) -> Callable[[Any, tuple[Any, ...], Any], None]:
        return lambda _module, inputs, output: on_tensor(name, inputs[0] if is_input else output)

    hooks = [m.live.register_forward_hook(hook_of(m.name)) for m in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rows(values: Tensor, mask: Tensor) -> Tensor:
    """Rows without padding, [tokens, features]; all rows if they are not the batch's tokens."""
    if values.shape[:-1] == mask.shape:
        return values[mask.bool()]
    return values.reshape(-1, values.shape[-1])


def _forward(model: Any, ids: Tensor, mask: Tensor) -> None:
    """Run all blocks; not the output head, whose logits would be the largest tensor."""
    plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    plain.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
