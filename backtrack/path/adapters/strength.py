"""How far an adapter moves each module at full strength: what the paper's profiles even out.

For the formulas see `profiles`. A plain LoRA's delta is measured by its factors alone, without
being made: the squared norm of B A is the sum over (B^T B) * (A A^T).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight

from backtrack.errors import PointError
from backtrack.path.adapters.effective_weights import module_parts, overwritten_parts
from backtrack.path.adapters.handles import plain_name
from backtrack.path.curves import angles
from backtrack.path.profiles import Strength

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from peft import PeftModel
    from torch import Tensor

    from backtrack.path.adapters.handles import Handle


def way(handle: Handle, trained: Tensor) -> Tensor:
    """From identity to trained, in the handle's own numbers."""
    if handle.identity is None:
        return angles(trained)
    return trained.float() - handle.identity.float()


def generator_strengths(
    handles: Iterable[Handle], trained: Mapping[str, Tensor]
) -> dict[str, Strength]:
    """Of a rotation, by its generators or angles."""
    found: dict[str, Strength] = {}
    for handle in handles:
        if handle.law in {"root", "turn"}:
            moved = way(handle, trained[handle.name])
            for module in handle.modules:
                found[module] = Strength(float(moved.square().sum()), moved.numel())
    return found


def delta_strengths(
    model: PeftModel, overwritten: Iterable[str], base_value: Callable[[str], Tensor]
) -> dict[str, Strength]:
    """Of an adapter that stands at full strength, by its deltas.

    Args:
        model: The adapted model.
        overwritten: Names of base parameters that the adapter overwrote.
        base_value: The base's own tensor of a name.

    Raises:
        PointError: A layer's base is quantized, and its delta is not LoRA's.
    """
    adapter = model.active_adapter
    found: dict[str, Strength] = {}
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and _is_product(module, adapter):
            found[plain_name(path)] = _of_product(module, adapter)
        else:
            _require_dense(path, module)
            found |= _of_parts(module_parts(path, module, adapter), base_value)
    return found | _of_parts(overwritten_parts(model, overwritten), base_value)


def _is_product(layer: Any, adapter: str) -> bool:
    return (
        adapter in layer.lora_A
        and adapter not in layer.lora_variant
        and layer.lora_A[adapter].weight.ndim == 2
        and getattr(layer, "parameter_name", "weight") == "weight"
    )


def _of_product(layer: Any, adapter: str) -> Strength:
    down, up = (f[adapter].weight.detach().float() for f in (layer.lora_A, layer.lora_B))
    moved = float(((up.T @ up) * (down @ down.T)).sum())
    base = dequantize_module_weight(layer.get_base_layer()).detach().float()
    return Strength(layer.scaling[adapter] ** 2 * moved, float(base.square().sum()))


def _require_dense(path: str, module: Any) -> None:
    if not isinstance(module, BaseTunerLayer) or not isinstance(module, torch.nn.Module):
        return
    weight = getattr(module.get_base_layer(), "weight", None)
    if weight is not None and not weight.is_floating_point():
        raise PointError(
            f"profiles safe and min measure how far {plain_name(path)} moves, and its base is "
            "quantized. Give the base in full precision, or use another profile."
        )


def _of_parts(
    parts: Iterator[tuple[str, Callable[[Tensor], None]]], base_value: Callable[[str], Tensor]
) -> dict[str, Strength]:
    found = {}
    for name, write in parts:
        module, _, kind = name.rpartition(".")
        if kind == "weight":
            base = base_value(name)
            weight = torch.empty_like(base, dtype=torch.float32)
            write(weight)
            found[module] = relative(weight, base)
    return found


def relative(weight: Tensor, base: Tensor) -> Strength:
    """Squares of a delta and of what it is added to."""
    wide = base.to(weight.device, torch.float32)
    return Strength(float((weight.float() - wide).square().sum()), float(wide.square().sum()))


def generator_norms(
    model: PeftModel, handles: Iterable[Handle], trained: Mapping[str, Tensor]
) -> Iterator[float]:
    """Largest spectral norm of each layer's skew generators, of those that PEFT's OFT keeps."""
    for handle in handles:
        if "oft_R" in handle.name.split("."):
            rotation: Any = model.get_submodule(handle.name.rpartition(".")[0])
            skew = rotation._pytorch_skew_symmetric(  # noqa: SLF001
                trained[handle.name].float(), rotation.block_size
            )
            yield float(torch.linalg.matrix_norm(skew, ord=2).max())
