"""Find the handles of a live adapter: the tensors that move with alpha.

With every handle at its identity, the adapted model is the base. The table in `tuners` says which
tensors are handles; extra parameters trained beside the adapter are handles too.
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
    """A trained tensor of the live model, and the value at which it does nothing.

    Attributes:
        name: Parameter name in the live model.
        live: The parameter.
        identity: Value at the base; None if the tensor keeps its trained value, or if its identity
            is computed from the trained value (`turn`).
        law: How the tensor follows alpha.
        modules: Paths in the plain model of the modules that use it; several if it is shared.
    """

    name: str
    live: Tensor
    identity: Tensor | None
    law: Law
    modules: tuple[str, ...]

    @property
    def is_fixed(self) -> bool:
        """Whether it keeps its trained value at every alpha."""
        return self.identity is None and self.law != "turn"

    def write(self, trained: Tensor, alpha: float) -> None:
        """Write the tensor's value at `alpha` into the live parameter."""
        if self.law == "turn":
            turn(trained, alpha, out=self.live)
        elif self.identity is None:
            self.live.copy_(trained)
        else:
            line(self.identity, trained, coefficient(self.law, alpha), out=self.live)


def find_handles(model: PeftModel, base_tensors: Mapping[str, Tensor]) -> tuple[Handle, ...]:
    """Find every handle of a live adapter, in the model's order.

    Args:
        model: Loaded with `is_trainable=True`, so that trained tensors require gradients.
        base_tensors: The base's own values of parameters that the adapter overwrites (biases,
            embeddings), by their names in the base model.

    Raises:
        PlacementError: A trained tensor has no known identity.
    """
    config = model.peft_config[model.active_adapter]
    tuner = tuner_of(config)
    layers = _tuner_layers(model)
    modules = _modules_of_parameters(model)
    handles = []
    for name, live in model.named_parameters():
        parts = name.split(".")
        is_tuners = _is_tuner_parameter(parts, layers, tuner.rules)
        rule = rule_of(tuner, parts) if is_tuners else None
        is_extra = live.requires_grad or plain_name(name) in base_tensors
        if rule is None and not is_extra:
            continue
        identity = (
            _extra_identity(model, name, base_tensors)
            if rule is None
            else _identity(rule, model, parts, live)
        )
        copied = None if identity is None else identity.detach().clone().to(live.dtype)
        law = "linear" if rule is None else law_of(rule)
        handles.append(Handle(name, live, copied, law, modules[id(live)]))
    return tuple(handles)


def _tuner_layers(model: PeftModel) -> frozenset[str]:
    return frozenset(
        p for p, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    )


def _is_tuner_parameter(
    parts: list[str], layers: frozenset[str], rules: Mapping[str, Rule]
) -> bool:
    """Whether a parameter is the tuner's own, and not the wrapped layer's.

    Tuner layers are nested where an adapter targets several parameters of one module (the
    projections of stacked experts): the innermost one decides.
    """
    ends = [end for end in range(1, len(parts)) if ".".join(parts[:end]) in layers]
    below = parts[max(ends, default=0) :]
    at_top = any(part.startswith(tuple(rules)) for part in parts)
    is_own = below[0] != "base_layer" and "modules_to_save" not in parts
    return (bool(ends) or at_top) and is_own


def _modules_of_parameters(model: PeftModel) -> dict[int, tuple[str, ...]]:
    """Paths in the plain model of the modules that use each parameter, by the parameter's id."""
    modules: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module, torch.nn.Module):
            for parameter in module.parameters():
                modules.setdefault(id(parameter), []).append(plain_name(path))
    for name, parameter in model.named_parameters():
        modules.setdefault(id(parameter), [plain_name(name).rpartition(".")[0]])
    return {key: tuple(dict.fromkeys(paths)) for key, paths in modules.items()}


def _identity(rule: Rule, model: PeftModel, parts: list[str], live: Tensor) -> Tensor | None:
    match rule:
        case "fixed" | "turn":
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
    """Row norms of W0, computed as in PEFT's forward pass, so that DoRA's ratio is exactly 1."""
    at = parts.index("lora_magnitude_vector")
    layer = model.get_submodule(".".join(parts[:at]))
    adapter = parts[at + 1]
    if not isinstance(layer, LoraLayer):
        raise PlacementError(
            f"{'.'.join(parts)} is in no LoRA layer, so its value in the base is not known."
        )
    weight: Any = dequantize_module_weight(layer.get_base_layer())
    dora: Any = layer.lora_magnitude_vector[adapter]
    wide = weight.detach().to(dora.weight.dtype)
    if wide.ndim == 2 and isinstance(layer.get_base_layer(), torch.nn.Embedding):
        wide = wide.T
    norm: Tensor = dora.get_weight_norm(wide, torch.zeros_like(wide), 1.0)
    return norm.reshape(dora.weight.shape)


def _own_value(model: PeftModel, parts: list[str]) -> Tensor:
    """The base's value of a parameter that LN tuning or trainable tokens replace."""
    at = next(
        i for i, part in enumerate(parts) if part.startswith(("ln_tuning", "trainable_tokens"))
    )
    layer: Any = model.get_submodule(".".join(parts[:at]))
    base: Any = layer.get_base_layer()
    if parts[at] == "trainable_tokens_delta":
        rows: Tensor = base.weight[layer.token_indices[parts[-1]]]
        return rows
    own: Tensor = base.get_parameter(parts[-1])
    return own


def _extra_identity(model: PeftModel, name: str, base_tensors: Mapping[str, Tensor]) -> Tensor:
    """The base's value of an extra parameter, trained beside the adapter."""
    for path, module in _parent_modules(model, name):
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
        f"{name} was trained, but its value in the base is not known. "
        "Use the line: `placement: {form: merged, curve: line}` in the recipe."
    )


def _parent_modules(model: PeftModel, name: str) -> Iterator[tuple[str, torch.nn.Module]]:
    for path, module in model.named_modules():
        if path and name.startswith(f"{path}."):
            yield path, module


def plain_name(name: str) -> str:
    """The name of a parameter or module in the plain model, without the adapter's wrappers."""
    parts = name.removeprefix("base_model.model.").split(".")
    plain = [p for p in parts if p not in {"base_layer", "original_module", "token_adapter"}]
    if "modules_to_save" in plain:
        at = plain.index("modules_to_save")
        del plain[at : at + 2]
    return ".".join(plain)
