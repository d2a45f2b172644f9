"""Linear modules of a placed model: names, locations and weights.

A LOCATION is a module chosen by its relative depth, so that models of any depth can be compared:
the output projections of attention and of the MLP at four depths (the first block, a third and two
thirds of the way, the last block). In a model of 28 blocks `late.mlp` is block 18's
down-projection, the paper's own example.

Not covered: weights outside linear modules (fused experts, embeddings, norms), the output head.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from transformers.pytorch_utils import Conv1D

from backtrack.errors import UsageError
from backtrack.path.adapters.effective_weights import module_weights
from backtrack.path.adapters.handles import plain_name
from backtrack.path.profiles import block_of, part_of
from backtrack.recipe import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from backtrack.records.diagnosis import Part

DEPTHS = {"first": 0.0, "early": 1 / 3, "late": 2 / 3, "last": 1.0}
PARTS: tuple[Part, ...] = ("attention", "mlp")
SETS = {
    "paper8": tuple(
        f"*.{block}.*{name}"
        for block in (9, 18)
        for name in ("q_proj", "k_proj", "v_proj", "down_proj")
    )
}
"""Patterns by the name of a set of modules: `paper8` are those of PEFT-Arena's release."""


@dataclass(frozen=True)
class LinearModule:
    """A linear module of a live model.

    Attributes:
        name: Its path in the plain model.
        live: The module, or the adapter's layer around it.
        shape: Shape of its weight: outputs, inputs.
    """

    name: str
    live: Any
    shape: tuple[int, int]

    @property
    def block(self) -> int | None:
        return block_of(self.name)

    @property
    def part(self) -> Part:
        return part_of(self.name)

    @torch.no_grad()
    def base_weight(self) -> Tensor:
        """A copy of W0 of a model placed at the base, [out, in], fp32."""
        return _widened(_layer(self.live))

    @torch.no_grad()
    def weight(self, adapter: str | None) -> Tensor:
        """A copy of the effective weight at the model's point, [out, in], fp32.

        Args:
            adapter: Name of the live adapter; None in a plain model.
        """
        layer = _layer(self.live)
        if adapter is None or layer is self.live:
            return _widened(layer)
        for name, write in module_weights(self.name, self.live, adapter):
            if name == f"{self.name}.weight":
                # A quantized layer's own tensor has another shape than its weight.
                weight = torch.empty_like(dequantize_module_weight(layer), dtype=torch.float32)
                write(weight)
                return _oriented(layer, weight)
        return _widened(layer)


def linear_modules(model: Any) -> tuple[LinearModule, ...]:
    """Linear modules inside the blocks of layers, in the model's order.

    Args:
        model: A plain model, or one with an adapter.

    Raises:
        UsageError: There are none.
    """
    linear: dict[str, LinearModule] = {}
    adapter_layers: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(outer) for outer in adapter_layers):
            continue
        if isinstance(module, BaseTunerLayer):
            adapter_layers.append(f"{path}.")
        layer = _layer(module)
        name = plain_name(path)
        if isinstance(layer, (torch.nn.Linear, Conv1D)) and block_of(name) is not None:
            linear[name] = LinearModule(name, module, _shape(layer))
    if not linear:
        raise UsageError(
            "this model has no linear module inside numbered blocks of layers, so there is "
            "nothing to diagnose."
        )
    return tuple(linear.values())


def choose(modules: Sequence[LinearModule], patterns: Sequence[str]) -> tuple[LinearModule, ...]:
    """Choose modules by location, path, set, or a pattern such as `*.down_proj`.

    Args:
        modules: All modules.
        patterns: Locations, paths, names of `SETS` and patterns; empty for all modules.

    Raises:
        UsageError: One of them matches no module.
    """
    if not patterns:
        return tuple(modules)
    by_location = locations(modules)
    chosen: set[str] = set()
    for pattern in (each for text in patterns for each in SETS.get(text, (text,))):
        is_location = pattern in by_location
        names = [by_location[pattern]] if is_location else _matching(modules, pattern)
        if not names:
            places = [*by_location, *SETS]
            known = [*places, *(module.name for module in modules)]
            raise UsageError(
                f"no linear module matches {pattern!r}.{nearest(pattern, known)} Give a path, a "
                f"pattern such as '*.down_proj', or a location: {', '.join(places)}."
            )
        chosen.update(names)
    return tuple(module for module in modules if module.name in chosen)


def _matching(modules: Sequence[LinearModule], pattern: str) -> list[str]:
    return [m.name for m in modules if fnmatch.fnmatchcase(m.name, pattern)]


def locations(modules: Sequence[LinearModule]) -> dict[str, str]:
    """Paths by location, such as `late.mlp`; up to eight, as far as the model has them."""
    blocks = sorted({m.block for m in modules if m.block is not None})
    paths: dict[str, str] = {}
    for depth, share in DEPTHS.items():
        block = blocks[round(share * (len(blocks) - 1))]
        for part in PARTS:
            names = [m.name for m in modules if m.block == block and m.part == part]
            if names:
                # The last linear module of a part writes to the residual stream.
                paths[f"{depth}.{part}"] = names[-1]
    return paths


def _layer(module: Any) -> Any:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _shape(layer: Any) -> tuple[int, int]:
    if isinstance(layer, Conv1D):
        return int(layer.weight.shape[1]), int(layer.weight.shape[0])
    return int(layer.out_features), int(layer.in_features)


def _widened(layer: Any) -> Tensor:
    return _oriented(layer, dequantize_module_weight(layer).detach().to(torch.float32, copy=True))


def _oriented(layer: Any, weight: Tensor) -> Tensor:
    """The weight as [out, in], however the layer stores it."""
    return weight.T if isinstance(layer, Conv1D) else weight
