"""Measure how far an adapter moves each module at alpha 1, for profiles that equalize this.

The formulas are in `profiles`. A plain LoRA's delta is measured from its factors without being
materialized: the squared norm of B A is the sum over (B^T B) * (A A^T).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight

from backtrack.errors import PointError
from backtrack.path.adapters.effective_weights import module_weights, overwritten_weights
from backtrack.path.adapters.handles import plain_name
from backtrack.path.curves import angles
from backtrack.path.profiles import Strength, summed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from peft import PeftModel
    from torch import Tensor

    from backtrack.path.adapters.effective_weights import WeightWriter
    from backtrack.path.adapters.handles import Handle


STACKED_DIMENSIONS = 3
"""Dimensions of the weights of all experts of a layer in one tensor: [experts, ...]."""


def displacement(handle: Handle, trained: Tensor) -> Tensor:
    """Trained value minus identity, in fp32; for Householder vectors the angles."""
    if handle.identity is None:
        return angles(trained)
    return trained.float() - handle.identity.float()


def generator_strengths(
    handles: Iterable[Handle], trained: Mapping[str, Tensor]
) -> dict[str, Strength]:
    """Strength of each module of a rotation, from its generators or angles."""
    strengths: dict[str, Strength] = {}
    for handle in handles:
        if handle.law in {"root", "turn"}:
            moved = displacement(handle, trained[handle.name])
            for module in handle.modules:
                strengths[module] = Strength(float(moved.square().sum()), moved.numel())
    return strengths


def delta_strengths(
    model: PeftModel, extra_names: Iterable[str], base_value: Callable[[str], Tensor]
) -> dict[str, Strength]:
    """Strength of each module of an adapter that is at alpha 1, from its weight deltas.

    Args:
        model: The adapted model.
        extra_names: Names of base parameters that the adapter overwrote.
        base_value: Returns the base's own tensor of a name.

    Raises:
        PointError: A layer's base is quantized, and its delta is not LoRA's.
    """
    adapter = model.active_adapter
    strengths: list[tuple[str, Strength]] = []
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and _is_plain_product(module, adapter):
            strengths.append((plain_name(path), _product_strength(module, adapter)))
        else:
            _require_unquantized(path, module)
            strengths += _weight_strengths(module_weights(path, module, adapter), base_value)
    strengths += _weight_strengths(overwritten_weights(model, extra_names), base_value)
    return summed(strengths)


def _is_plain_product(layer: Any, adapter: str) -> bool:
    return (
        adapter in layer.lora_A
        and adapter not in layer.lora_variant
        and layer.lora_A[adapter].weight.ndim == 2
        and getattr(layer, "parameter_name", "weight") == "weight"
    )


def _product_strength(layer: Any, adapter: str) -> Strength:
    down, up = (f[adapter].weight.detach().float() for f in (layer.lora_A, layer.lora_B))
    moved = float(((up.T @ up) * (down @ down.T)).sum())
    base = dequantize_module_weight(layer.get_base_layer()).detach().float()
    return Strength(layer.scaling[adapter] ** 2 * moved, float(base.square().sum()))


def _require_unquantized(path: str, module: Any) -> None:
    if not isinstance(module, BaseTunerLayer) or not isinstance(module, torch.nn.Module):
        return
    weight = getattr(module.get_base_layer(), "weight", None)
    if weight is not None and not weight.is_floating_point():
        raise PointError(
            f"profiles safe and min measure how far {plain_name(path)} moves, which needs the "
            "base's weights, and they are quantized. Give the base in full precision, or use "
            "another profile."
        )


def _weight_strengths(
    writers: Iterator[WeightWriter], base_value: Callable[[str], Tensor]
) -> Iterator[tuple[str, Strength]]:
    for name, write in writers:
        base = base_value(name)
        if is_weight(name, base):
            weight = torch.empty_like(base, dtype=torch.float32)
            write(weight)
            yield name.rpartition(".")[0], relative_strength(weight, base)


def is_weight(name: str, tensor: Tensor) -> bool:
    """Whether a tensor counts in its block's strength: a `weight`, or those of stacked experts."""
    return name.endswith(".weight") or tensor.ndim == STACKED_DIMENSIONS


def relative_strength(weight: Tensor, base: Tensor) -> Strength:
    """Squared norms of a weight's delta and of its base value."""
    wide = base.to(weight.device, torch.float32)
    return Strength(float((weight.float() - wide).square().sum()), float(wide.square().sum()))


def generator_norms(
    model: PeftModel, handles: Iterable[Handle], trained: Mapping[str, Tensor]
) -> Iterator[float]:
    """Largest spectral norm of the skew generators of each OFT layer."""
    for handle in handles:
        if "oft_R" in handle.name.split("."):
            rotation: Any = model.get_submodule(handle.name.rpartition(".")[0])
            skew = rotation._pytorch_skew_symmetric(  # noqa: SLF001
                trained[handle.name].float(), rotation.block_size
            )
            yield float(torch.linalg.matrix_norm(skew, ord=2).max())
