"""Handles: which tensors of an adapter move with alpha, from which identity, by which law.

An adapter whose handles stand at their identities is the base. What is covered:

    tuner                      moves                            law
    LoRA, rsLoRA, patterns     lora_B, lora_embedding_B (0)     linear
    LoRA with DoRA             and the magnitude (row norms)    linear
    OFT, both Cayley branches  oft_R (0)                        root
    riders of both             modules_to_save, bias, trainable tokens (the base's values)  linear

Not covered: initializations that rewrite the base (PiSSA and its kin), and every other tuner;
those that PEFT can merge stand on the dense line instead. Prompt methods have no weights to move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftType
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper

from backtrack.errors import PlacementError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import PeftConfig, PeftModel
    from torch import Tensor

    from backtrack.path.curves import Law

NATIVE = frozenset({PeftType.LORA, PeftType.OFT})
"""Tuners whose own parameters can be moved."""

_LAW: dict[PeftType, Law] = {PeftType.LORA: "linear", PeftType.OFT: "root"}
_FROM_ZERO = ("lora_B", "lora_embedding_B", "oft_R")
_STILL = ("lora_A", "lora_embedding_A")
_MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class Handle:
    """A tensor of the live adapter.

    Attributes:
        name: Its parameter name in the live model.
        live: The parameter.
        identity: Its value at the base; none for a tensor that stays at its trained value.
        law: How its coefficient follows alpha.
    """

    name: str
    live: Tensor
    identity: Tensor | None
    law: Law


def require_native(config: PeftConfig, where: str) -> None:
    """Refuse an adapter whose own parameters do not lead to the base.

    Raises:
        PlacementError: With the reason and the way out.
    """
    if PeftType(config.peft_type) not in NATIVE:
        raise PlacementError(
            f"{where}: the native curve of {config.peft_type} is not known here. "
            "Stand on the dense line: `placement: {form: merged, curve: line}` in the recipe."
        )
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init not in {"gaussian", "orthogonal", "eva"}:
        raise PlacementError(
            f"{where}: init_lora_weights={init!r} changed the base at initialization, so alpha 0 "
            "of this adapter is not the base. Convert it to a plain LoRA when saving "
            "(`path_initial_model_for_weight_conversion` of PEFT's save_pretrained), then adopt "
            "that."
        )


def find_handles(model: PeftModel, base_tensors: Mapping[str, Tensor]) -> tuple[Handle, ...]:
    """Every trained tensor of a live adapter, in the model's order.

    Args:
        model: Loaded with `is_trainable=True`, so that what was trained requires gradients.
        base_tensors: The base's biases by their names in the base model.

    Raises:
        PlacementError: A trained tensor has no known identity.
    """
    config = model.peft_config[model.active_adapter]
    law = _LAW[PeftType(config.peft_type)]
    return tuple(
        _handle(model, name, live, law, base_tensors)
        for name, live in model.named_parameters()
        if live.requires_grad
    )


def _handle(
    model: PeftModel, name: str, live: Tensor, law: Law, base_tensors: Mapping[str, Tensor]
) -> Handle:
    parts = name.split(".")
    if any(part in _STILL for part in parts):
        return Handle(name, live, None, law)
    if any(part in _FROM_ZERO for part in parts):
        return Handle(name, live, torch.zeros_like(live), law)
    identity = (
        _magnitude(model, parts) if _MAGNITUDE in parts else _rider(model, name, base_tensors)
    )
    return Handle(name, live, identity.detach().clone().to(live.dtype), "linear")


def _magnitude(model: PeftModel, parts: list[str]) -> Tensor:
    """Row norms of W0, computed as PEFT's forward does, so that their ratio is exactly 1."""
    at = parts.index(_MAGNITUDE)
    layer = model.get_submodule(".".join(parts[:at]))
    adapter = parts[at + 1]
    if not isinstance(layer, LoraLayer):
        raise PlacementError(
            f"{'.'.join(parts)} belongs to no LoRA layer; nothing here knows its base value."
        )
    weight: Any = layer.get_base_layer().weight
    dora: Any = layer.lora_magnitude_vector[adapter]
    wide = weight.detach().to(dora.weight.dtype)
    if wide.ndim == 2 and _is_embedding(layer):
        wide = wide.T
    norm: Tensor = dora.get_weight_norm(wide, torch.zeros_like(wide), 1.0)
    return norm.reshape(dora.weight.shape)


def _is_embedding(layer: LoraLayer) -> bool:
    return isinstance(layer.get_base_layer(), torch.nn.Embedding)


def _rider(model: PeftModel, name: str, base_tensors: Mapping[str, Tensor]) -> Tensor:
    """The base's value of a tensor that is trained beside the adapter."""
    for path, module in model.named_modules():
        if not path or not name.startswith(f"{path}."):
            continue
        if isinstance(module, ModulesToSaveWrapper):
            inner = name.removeprefix(f"{path}.modules_to_save.").partition(".")[2]
            original: Tensor = module.original_module.get_parameter(inner)
            return original
        if isinstance(module, TrainableTokensWrapper):
            adapter: Any = module.token_adapter
            indices = adapter.token_indices[model.active_adapter]
            rows: Tensor = adapter.get_base_layer().weight[indices]
            return rows
    plain = plain_name(name)
    if plain in base_tensors:
        return base_tensors[plain]
    raise PlacementError(
        f"{name} was trained, but nothing here knows its value in the base. "
        "Stand on the dense line: `placement: {form: merged, curve: line}` in the recipe."
    )


def plain_name(name: str) -> str:
    """A parameter's name in the model without its adapter."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")
