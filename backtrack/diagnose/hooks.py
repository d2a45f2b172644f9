"""Read prompts through a placed model and take what its modules are given and give.

Padding is left out of every sum. Modules that are given the same tensor (queries, keys and values;
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

    Take = Callable[[str, Tensor], None]

BATCH_PROMPTS = 32


def input_moments(
    placement: Placement, modules: Sequence[LinearModule], prompts: Prompts
) -> dict[str, Moments]:
    """Second moments of each module's inputs in the base, by its name.

    Args:
        placement: Stands at the base.
        modules: Whose inputs.
        prompts: What is read.
    """
    found: dict[str, Moments] = {}
    leaders: dict[str, str] = {}
    seen: list[tuple[Tensor, str]] = []

    def take(name: str, given: Tensor) -> None:
        if name not in leaders:
            leaders[name] = next((other for tensor, other in seen if tensor is given), name)
            found.setdefault(leaders[name], Moments())
        if leaders[name] == name:
            seen.append((given, name))
            found[name].add(_rows(given, mask))

    with _hooked(modules, take, is_input=True), torch.no_grad():
        for ids, mask in prompts.batches(BATCH_PROMPTS, placement.model.device):
            seen.clear()
            _read(placement.model, ids, mask)
    seen.clear()
    silent = [m.name for m in modules if m.name not in leaders]
    if silent:
        raise UsageError(
            f"{len(silent)} modules were given nothing to read, first {silent[0]!r}: the model "
            "does not use them on these prompts. Leave them out with --modules."
        )
    return {module.name: found[leaders[module.name]] for module in modules}


def output_pairs(
    placement: Placement,
    modules: Sequence[LinearModule],
    prompts: Prompts,
    points: Sequence[Point],
) -> dict[str, Pairs]:
    """Each module's outputs in the base beside those at points, by its name.

    Args:
        placement: Is left at the last of the points.
        modules: Whose outputs.
        prompts: What is read.
        points: Where.
    """
    pairs = {module.name: Pairs(len(points)) for module in modules}
    with torch.no_grad():
        for ids, mask in prompts.batches(BATCH_PROMPTS, placement.model.device):
            stands = [_outputs(placement, modules, p, ids, mask) for p in (Point.base(), *points)]
            for name, pair in pairs.items():
                start, *ends = (outputs[name] for outputs in stands)
                pair.add(start, ends)
    return pairs


def _outputs(
    placement: Placement,
    modules: Sequence[LinearModule],
    point: Point,
    ids: Tensor,
    mask: Tensor,
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    placement.place(point)
    with _hooked(
        modules, lambda name, given: found.update({name: _rows(given, mask)}), is_input=False
    ):
        _read(placement.model, ids, mask)
    return found


@contextmanager
def _hooked(modules: Sequence[LinearModule], take: Take, *, is_input: bool) -> Iterator[None]:
    """`take` is told each module's name and what it is given, or gives, at every pass."""

    def watch(name: str) -> Callable[[Any, tuple[Any, ...], Any], None]:
        return lambda _module, given, made: take(name, given[0] if is_input else made)

    hooks = [m.live.register_forward_hook(watch(m.name)) for m in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rows(values: Tensor, mask: Tensor) -> Tensor:
    """Rows of real tokens, [tokens, features]; all rows, where a module has others."""
    if values.shape[:-1] == mask.shape:
        return values[mask.bool()]
    return values.reshape(-1, values.shape[-1])


def _read(model: Any, ids: Tensor, mask: Tensor) -> None:
    """A pass through all blocks; the output head is left out, its logits would be the largest."""
    plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    plain.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
