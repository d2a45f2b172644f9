"""Initial factors of LoRA that PEFT does not have; none of them changes the base.

added_pissa, added_milora    the r largest, or smallest, singular components of W0 beside W0 as it
                             is: training starts from W0 + scaling B A = W0 plus these components.
                             So PEFT-Arena's release trains PiSSA and MiLoRA from a saved adapter.
keeplora                     G is the gradient of W0 over one micro-batch, V the principal right
                             singular directions of W0, `PRINCIPAL_RANKS` r of them. The factors
                             are those of G (I - V V^T) at rank r: A its right singular vectors,
                             frozen, and B its left ones times the singular values.
frozen_a                     PEFT's own factors, A frozen: what that release trains by KeepLoRA's
                             name, as it looks its gradients up under other names and finds none.

Scaling B to zero gives W0 for each, so that the path is an ordinary LoRA's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer

from backtrack.errors import UsageError
from backtrack.train.methods.configs import ADDED_MILORA, ADDED_PISSA, FROZEN_A, KEEPLORA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

PRINCIPAL_RANKS = 4
"""Principal directions that KeepLoRA's gradient is projected off, in ranks of the adapter."""
EXACT_UP_TO = 1024
"""Shorter side up to which singular vectors are computed exactly, rather than by projection."""
_OVERSAMPLED = 8
_POWER_STEPS = 4


def initialize_factors(trainer: Any, initialization: str) -> None:
    """Initialize a trainer's untrained LoRA adapter, and freeze what the method does not train.

    Raises:
        UsageError: It adapts other layers than unquantized linear ones, a layer has too few
            singular values, or KeepLoRA's gradient cannot be had.
    """
    model = trainer.model
    if initialization in (ADDED_PISSA, ADDED_MILORA):
        for name, layer, (down, up) in _adapted(model):
            factors = singular_factors(
                base_weight(name, layer), len(down), layer.scaling[model.active_adapters[0]],
                name, is_smallest=initialization == ADDED_MILORA,
            )  # fmt: skip
            _set(down, up, factors)
    if initialization == KEEPLORA:
        _set_from_gradients(trainer)
    if initialization in (KEEPLORA, FROZEN_A):
        freeze_down(model)


def freeze_down(model: Any) -> None:
    """Freeze A of each layer of a LoRA."""
    for _, _, (down, _) in _adapted(model):
        down.requires_grad = False


def singular_factors(
    weight: Tensor, rank: int, scaling: float, name: str, *, is_smallest: bool
) -> tuple[Tensor, Tensor]:
    """Factors A [rank, in] and B [out, rank] of `rank` singular components, fp32.

    `scaling` B A is the sum of the components.

    Raises:
        UsageError: The weight of the layer called `name` has fewer of them.
    """
    if rank > min(weight.shape):
        raise UsageError(
            f"{name} has only {min(weight.shape)} singular values for a rank of {rank}. "
            "Lower `method.r`, or the layer's by `method.rank_pattern`."
        )
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    part = slice(-rank, None) if is_smallest else slice(rank)
    root = (values[part] / scaling).sqrt()
    return root[:, None] * right[part], left[:, part] * root


def keeplora_factors(weight: Tensor, gradient: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """KeepLoRA's factors A [rank, in] and B [out, rank] from W0 and its gradient, fp32."""
    _, _, principal = _leading(weight.float(), PRINCIPAL_RANKS * rank)
    wide = gradient.float()
    left, values, right = _leading(wide - (wide @ principal) @ principal.T, rank)
    return right.T, left * values


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triplets: left [out, rank], values [rank], right [in, rank]."""
    side = min(matrix.shape)
    if side <= EXACT_UP_TO or rank + _OVERSAMPLED >= side:
        left, values, rows = torch.linalg.svd(matrix, full_matrices=False)
        right = rows.T
    else:
        left, values, right = torch.svd_lowrank(matrix, rank + _OVERSAMPLED, _POWER_STEPS)
    return left[:, :rank], values[:rank], right[:, :rank]


def _set_from_gradients(trainer: Any) -> None:
    """Set KeepLoRA's factors while one backward pass goes on, layer by layer.

    So only one layer's gradient is held at a time.
    """
    model, hooks = trainer.model, []
    for name, layer, factors in _adapted(model):
        weight = base_weight(name, layer).requires_grad_()
        take: Any = weight.register_post_accumulate_grad_hook  # torch does not type it
        hooks.append(take(_KeepLoraHook(*factors)))
    batch = next(iter(trainer.get_train_dataloader()))
    # The adapter's own factors are written during the pass, which must not have read them.
    with model.disable_adapter():
        model(**{name: value.to(model.device) for name, value in batch.items()}).loss.backward()
    for hook in hooks:
        hook.remove()
    for name, layer, _ in _adapted(model):
        base_weight(name, layer).requires_grad = False
    model.zero_grad(set_to_none=True)


class _KeepLoraHook:
    """Takes over the gradient of one layer's base weight."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        self._down, self._up = down, up

    @torch.no_grad()
    def __call__(self, weight: Tensor) -> None:
        assert weight.grad is not None
        rank = len(self._down)
        _set(self._down, self._up, keeplora_factors(weight, weight.grad, rank))
        weight.grad = None


@torch.no_grad()
def _set(down: Tensor, up: Tensor, factors: tuple[Tensor, Tensor]) -> None:
    """Write factors; where they have fewer ranks than the adapter, the others become zero."""
    rank = len(factors[0])
    down.zero_()[:rank] = factors[0].to(down)
    up.zero_()[:, :rank] = factors[1].to(up)


def _adapted(model: Any) -> Iterator[tuple[str, Any, tuple[Tensor, Tensor]]]:
    """Name, layer and both factors of each adapted layer."""
    adapter = model.active_adapters[0]
    layers: list[tuple[str, Any]] = [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)
    ]
    for name, layer in layers:
        yield name, layer, (layer.lora_A[adapter].weight, layer.lora_B[adapter].weight)


def base_weight(name: str, layer: Any) -> Tensor:
    """W0 of an adapted layer, [out, in].

    Raises:
        UsageError: It is quantized, or no linear layer.
    """
    base = layer.get_base_layer()
    if not isinstance(base, torch.nn.Linear) or not base.weight.is_floating_point():
        raise UsageError(
            f"this initialization needs the weights of unquantized linear layers, and {name} is a "
            f"{type(base).__name__}. Remove it from `method.target_modules`."
        )
    return base.weight
