"""Handles: the tensors of a live adapter that move with alpha, from which identity, by which law.

An adapter whose handles stand at their identities is the base. Which tensors these are is the
table of `tuners`; here they are found in a live model, with the riders trained beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from peft.utils.integrations import dequantize_module_weight

from backtrack.errors import PlacementError
from backtrack.path.adapters.tuners import Rule, law_of, rule_of, tuner_of
from backtrack.path.curves import coefficient, line, turn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from peft import PeftModel
    from torch import Tensor

    from backtrack.path.curves import Law


@dataclass(frozen=True)
class Handle:
    """A tensor of the live adapter.

    Attributes:
        name: Its parameter name in the live model.
        live: The parameter.
        identity: Its value at the base; none for a tensor that stays at its trained value, or
            whose identity is part of the trained value (`turn`).
        law: How it follows alpha.
        modules: Paths in the plain model of the modules it is part of; several where shared.
    """

    name: str
    live: Tensor
    identity: Tensor | None
    law: Law
    modules: tuple[str, ...]

    @property
    def is_still(self) -> bool:
        return self.identity is None and self.law != "turn"

    def place(self, trained: Tensor, alpha: float) -> None:
        """Write the tensor's value at `alpha` into the live model."""
        if self.law == "turn":
            turn(trained, alpha, out=self.live)
        elif self.identity is None:
            self.live.copy_(trained)
        else:
            line(self.identity, trained, coefficient(self.law, alpha), out=self.live)


def find_handles(model: PeftModel, base_tensors: Mapping[str, Tensor]) -> tuple[Handle, ...]:
    """Every tensor of a live adapter that was trained, in the model's order.

    Args:
        model: Loaded with `is_trainable=True`, so that what was trained requires gradients.
        base_tensors: The base's own values of what an adapter may overwrite (biases, embeddings),
            by their names in the base model.

    Raises:
        PlacementError: A trained tensor has no known identity.
    """
    config = model.peft_config[model.active_adapter]
    tuner = tuner_of(config)
    layers = _layers(model)
    shared = _owners(model)
    found = []
    for name, live in model.named_parameters():
        parts = name.split(".")
        rule = rule_of(tuner, parts) if _in_tuner(parts, layers, tuner.rules) else None
        is_rider = live.requires_grad or plain_name(name) in base_tensors
        if rule is None and not is_rider:
            continue
        identity = (
            _rider(model, name, base_tensors)
            if rule is None
            else _identity(rule, model, parts, live)
        )
        kept = None if identity is None else identity.detach().clone().to(live.dtype)
        law = "linear" if rule is None else law_of(rule)
        found.append(Handle(name, live, kept, law, shared[id(live)]))
    return tuple(found)


def _layers(model: PeftModel) -> frozenset[str]:
    return frozenset(
        p for p, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    )


def _in_tuner(parts: list[str], layers: frozenset[str], rules: Mapping[str, Rule]) -> bool:
    """Whether a parameter is one of the tuner's, and not one of the layer that it wraps."""
    inside = any(".".join(parts[:end]) in layers for end in range(1, len(parts)))
    at_top = any(part.startswith(tuple(rules)) for part in parts)
    return (inside or at_top) and not {"base_layer", "modules_to_save"} & set(parts)


def _owners(model: PeftModel) -> dict[int, tuple[str, ...]]:
    """The modules of the plain model that each parameter is part of, by the parameter's id."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module, torch.nn.Module):
            for parameter in module.parameters():
                owners.setdefault(id(parameter), []).append(plain_name(path))
    for name, parameter in model.named_parameters():
        owners.setdefault(id(parameter), [plain_name(name).rpartition(".")[0]])
    return {key: tuple(dict.fromkeys(paths)) for key, paths in owners.items()}


def _identity(rule: Rule, model: PeftModel, parts: list[str], live: Tensor) -> Tensor | None:
    match rule:
        case "still" | "turn":
            return None
        case "zero" | "generator" | "shared":
            return torch.zeros_like(live)
        case "one":
            return torch.ones_like(live)
        case "eye":
            return torch.eye(live.shape[0], dtype=live.dtype, device=live.device)
        case "norms":
            return _magnitude(model, parts)
        case "base":
            return _own_value(model, parts)


def _magnitude(model: PeftModel, parts: list[str]) -> Tensor:
    """Row norms of W0, computed as PEFT's forward does, so that their ratio is exactly 1."""
    at = parts.index("lora_magnitude_vector")
    layer = model.get_submodule(".".join(parts[:at]))
    adapter = parts[at + 1]
    if not isinstance(layer, LoraLayer):
        raise PlacementError(
            f"{'.'.join(parts)} belongs to no LoRA layer; nothing here knows its base value."
        )
    weight: Any = dequantize_module_weight(layer.get_base_layer())
    dora: Any = layer.lora_magnitude_vector[adapter]
    wide = weight.detach().to(dora.weight.dtype)
    if wide.ndim == 2 and isinstance(layer.get_base_layer(), torch.nn.Embedding):
        wide = wide.T
    norm: Tensor = dora.get_weight_norm(wide, torch.zeros_like(wide), 1.0)
    return norm.reshape(dora.weight.shape)


def _own_value(model: PeftModel, parts: list[str]) -> Tensor:
    """The base's value of what LN tuning or trainable tokens replace."""
    ends = [
        i for i, part in enumerate(parts) if part.startswith(("ln_tuning", "trainable_tokens"))
    ]
    layer: Any = model.get_submodule(".".join(parts[: ends[0]]))
    base: Any = layer.get_base_layer()
    if parts[ends[0]] == "trainable_tokens_delta":
        rows: Tensor = base.weight[layer.token_indices[parts[-1]]]
        return rows
    own: Tensor = base.get_parameter(parts[-1])
    return own


def _rider(model: PeftModel, name: str, base_tensors: Mapping[str, Tensor]) -> Tensor:
    """The base's value of a tensor that is trained beside the adapter."""
    for path, module in _modules_around(model, name):
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


def _modules_around(model: PeftModel, name: str) -> Iterator[tuple[str, torch.nn.Module]]:
    for path, module in model.named_modules():
        if path and name.startswith(f"{path}."):
            yield path, module


def plain_name(name: str) -> str:
    """A parameter's or module's name in the model without its adapter."""
    parts = name.removeprefix("base_model.model.").split(".")
    plain = [p for p in parts if p not in {"base_layer", "original_module", "token_adapter"}]
    if "modules_to_save" in plain:
        at = plain.index("modules_to_save")
        del plain[at : at + 2]
    return ".".join(plain)
