"""Effective weights: those with which a plain model computes what the adapted model does.

They are computed in fp32, layer by layer, and never by merging the live adapter in place (20
cycles of PEFT's merge and unmerge drift by 0.04 to 0.5 in bf16). Plain LoRA and OFT on linear
layers are written directly into the target; every other layer is copied, widened and merged by
PEFT itself.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.oft.layer import Linear as OftLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.integrations import dequantize_module_weight

from backtrack.errors import PlacementError
from backtrack.path.adapters.handles import plain_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from peft import PeftModel
    from torch import Tensor

    WeightWriter = tuple[str, Callable[[Tensor], None]]
    """A parameter's name in the plain model, and a function that writes its effective value into a
    tensor of its shape."""


@torch.no_grad()
def effective_weights(model: PeftModel) -> Iterator[WeightWriter]:
    """Writers for the weights that an adapter's layers change, at its current point.

    A writer is valid until the next one is taken. The tensor it writes into may have any type and
    device; the arithmetic is fp32 on that device.

    Args:
        model: The adapted model.

    Raises:
        PlacementError: PEFT cannot merge a layer, or only by quantizing it again.
    """
    for path, module in model.named_modules():
        yield from module_weights(path, module, model.active_adapter)


def overwritten_weights(model: PeftModel, names: Iterable[str]) -> Iterator[WeightWriter]:
    """Writers for base parameters of these names, which the adapter overwrote."""
    selected = set(names)
    for name, parameter in model.named_parameters():
        if plain_name(name) in selected:
            yield plain_name(name), _copier(parameter.detach())


def module_weights(path: str, module: torch.nn.Module, adapter: str) -> Iterator[WeightWriter]:
    """Writers for the weights that one module changes; see `effective_weights`."""
    if isinstance(module, ModulesToSaveWrapper):
        for name, parameter in module.modules_to_save[adapter].named_parameters():
            yield plain_name(f"{path}.{name}"), _copier(parameter.detach())
    elif isinstance(module, BaseTunerLayer):
        yield from _layer_weights(path, module, adapter)


def _copier(tensor: Tensor) -> Callable[[Tensor], None]:
    def write(out: Tensor) -> None:
        out.copy_(tensor)

    return write


def _layer_weights(path: str, module: BaseTunerLayer, adapter: str) -> Iterator[WeightWriter]:
    name = plain_name(f"{path}.weight")
    if isinstance(module, ParamWrapper) and module.num_experts > 1:
        name = plain_name(f"{path}.{module.parameter_name}")
        yield name, lambda out: _add_to_experts(module, adapter, out)
    elif isinstance(module, LoraLayer) and _is_plain_lora(module, adapter):
        yield name, lambda out: _add_low_rank(module, adapter, out)
    elif isinstance(module, OftLinear) and _is_plain_linear(module):
        yield name, lambda out: _rotate_blocks(module, adapter, out)
    else:
        yield from _merged_by_peft(path, module)


def _is_plain_linear(module: Any) -> bool:
    is_linear = type(module.get_base_layer()) is torch.nn.Linear and not module.fan_in_fan_out
    return is_linear and not module.merged


def _is_quantized(layer: Any) -> bool:
    weight = getattr(layer, "weight", None)
    return isinstance(weight, torch.Tensor) and not weight.is_floating_point()


def _is_plain_lora(module: Any, adapter: str) -> bool:
    return (
        (_is_plain_linear(module) or _is_quantized(module.get_base_layer()))
        and adapter in module.lora_A
        and isinstance(module.lora_A[adapter], torch.nn.Linear)  # AdaLoRA's are parameters
        and adapter not in module.lora_variant
        and not isinstance(module, ParamWrapper)
        and module.lora_B[adapter].bias is None
    )


def _add_low_rank(module: Any, adapter: str, out: Tensor) -> None:
    """Write `W0 + scaling B A` into `out`, [out features, in features]."""
    weight = dequantize_module_weight(module.get_base_layer()).detach()
    down = module.lora_A[adapter].weight.detach().to(out.device, torch.float32)
    up = module.lora_B[adapter].weight.detach().to(out.device, torch.float32)
    scaling = module.scaling[adapter]
    if (
        out.dtype == torch.float32
        and weight.dtype == torch.float32
        and weight.device == out.device
    ):
        torch.addmm(weight, up, down, alpha=scaling, out=out)
    else:
        wide = weight.to(out.device, torch.float32, copy=True)
        out.copy_(wide.addmm_(up, down, alpha=scaling))


def _add_to_experts(module: Any, adapter: str, out: Tensor) -> None:
    """Write `W0 + scaling B A` of each expert into `out`, [experts, ...] in the order of W0."""
    count = module.num_experts
    down = module.lora_A[adapter].weight.detach().to(out.device, torch.float32)
    up = module.lora_B[adapter].weight.detach().to(out.device, torch.float32)
    down = down.reshape(count, -1, down.shape[-1])  # [experts, rank, in features]
    up = up.reshape(up.shape[0], -1, count).permute(2, 0, 1)  # [experts, out features, rank]
    # PEFT notes in this flag which of an expert's axes is the output.
    is_out_first = module._did_swap_in_out_features  # noqa: SLF001
    factors = (up, down) if is_out_first else (down.mT, up.mT)
    wide = module.get_param().detach().to(out.device, torch.float32)
    out.copy_(wide.baddbmm(*factors, alpha=module.scaling[adapter]))


def _rotate_blocks(module: Any, adapter: str, out: Tensor) -> None:
    """Write `W0 R^T` into `out`, [out features, in features], block by block.

    PEFT's own merge multiplies by the full block-diagonal matrix, [in features, in features]. The
    blocks are PEFT's; R itself is never built, since PEFT's two branches are transposes of each
    other.
    """
    rotation = module.oft_R[adapter]
    vectors = rotation.weight.detach().to(out.device, torch.float32)
    blocks = _blocks(rotation, vectors)
    count = rotation.in_features // rotation.block_size
    weight = module.get_base_layer().weight.detach().to(out.device, torch.float32)
    pieces = weight.view(weight.shape[0], count, rotation.block_size)
    rotated = torch.einsum("onk,njk->onj", pieces, blocks.expand(count, -1, -1))
    out.copy_(rotated.reshape(weight.shape))


def _blocks(rotation: Any, vectors: Tensor) -> Tensor:
    """The rotation's diagonal blocks, [blocks or 1, size, size], by PEFT's Cayley transform."""
    if rotation.coft:
        vectors = rotation._project_batch(vectors, eps=rotation.eps)  # noqa: SLF001
    blocks: Tensor = rotation._cayley_batch(  # noqa: SLF001
        vectors, rotation.block_size, rotation.use_cayley_neumann,
        rotation.num_cayley_neumann_terms,
    )  # fmt: skip
    return blocks


def _merged_by_peft(path: str, module: BaseTunerLayer) -> Iterator[WeightWriter]:
    if _is_quantized(module.get_base_layer()):
        raise PlacementError(
            f"{plain_name(path)} is quantized, and PEFT merges a {type(module).__name__} into it "
            "only by quantizing it again. Give the base in full precision."
        )
    layer: Any = copy.deepcopy(module)
    layer.float()
    try:
        layer.merge()
    except Exception as error:
        raise PlacementError(
            f"PEFT cannot merge {path}: {error}. Use `placement: {{form: attached}}`."
        ) from error
    for name, parameter in layer.get_base_layer().named_parameters():
        yield plain_name(f"{path}.{name}"), _copier(parameter.detach())
