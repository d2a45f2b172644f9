"""The linear modules of a placed model: which there are, their names, their weights.

A LOCATION is a module chosen by how deep it lies, so that models of any depth are compared at the
same places: four depths (the first block, a third and two thirds of the way, the last block), and
at each what attention and the MLP hand on. In a model of 28 blocks `late.mlp` is block 18's
down-projection, the paper's own example.

Not covered: weights that are no linear module (fused experts, embeddings, norms, the output head).
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


@dataclass(frozen=True)
class LinearModule:
    """A linear module of a live model.

    Attributes:
        name: Its path in the plain model.
        live: The module, an adapter's layer where one stands on it.
        shape: Of its weight: outputs, inputs.
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
        """W0 where the model stands at the base, [out, in], fp32, a copy."""
        return _widened(_layer(self.live))

    @torch.no_grad()
    def weight(self, adapter: str | None) -> Tensor:
        """The effective weight where the model stands, likewise.

        Args:
            adapter: The live adapter's name; none in a plain model.
        """
        layer = _layer(self.live)
        if adapter is None or layer is self.live:
            return _widened(layer)
        for name, write in module_weights(self.name, self.live, adapter):
            if name == f"{self.name}.weight":
                found = torch.empty_like(layer.weight, dtype=torch.float32)
                write(found)
                return _oriented(layer, found)
        return _widened(layer)


def linear_modules(model: Any) -> tuple[LinearModule, ...]:
    """Linear modules inside the blocks of layers, in the model's order.

    Args:
        model: A plain model, or one with an adapter on it.

    Raises:
        UsageError: There are none.
    """
    found: dict[str, LinearModule] = {}
    inside: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(outer) for outer in inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside.append(f"{path}.")
        layer = _layer(module)
        name = plain_name(path)
        if isinstance(layer, (torch.nn.Linear, Conv1D)) and block_of(name) is not None:
            found[name] = LinearModule(name, module, _shape(layer))
    if not found:
        raise UsageError(
            "this model has no linear module inside numbered blocks of layers, so there is "
            "nothing to diagnose."
        )
    return tuple(found.values())


def choose(modules: Sequence[LinearModule], patterns: Sequence[str]) -> tuple[LinearModule, ...]:
    """The modules that names stand for: locations, paths, or patterns such as `*.down_proj`.

    Args:
        modules: All there are.
        patterns: Names; none stands for all modules.

    Raises:
        UsageError: A name stands for no module.
    """
    if not patterns:
        return tuple(modules)
    named = locations(modules)
    wanted: set[str] = set()
    for pattern in patterns:
        found = [named[pattern]] if pattern in named else _matching(modules, pattern)
        if not found:
            known = [*named, *(module.name for module in modules)]
            raise UsageError(
                f"no linear module is called {pattern!r}.{nearest(pattern, known)} Give a path, a "
                f"pattern such as '*.down_proj', or a location: {', '.join(named)}."
            )
        wanted.update(found)
    return tuple(module for module in modules if module.name in wanted)


def _matching(modules: Sequence[LinearModule], pattern: str) -> list[str]:
    return [m.name for m in modules if fnmatch.fnmatchcase(m.name, pattern)]


def locations(modules: Sequence[LinearModule]) -> dict[str, str]:
    """The eight depth locations by name, where the model has them: `late.mlp` and its path."""
    blocks = sorted({m.block for m in modules if m.block is not None})
    found: dict[str, str] = {}
    for depth, share in DEPTHS.items():
        block = blocks[round(share * (len(blocks) - 1))]
        for part in PARTS:
            inside = [m.name for m in modules if m.block == block and m.part == part]
            if inside:
                # What the part hands on to the residual stream is its last linear module.
                found[f"{depth}.{part}"] = inside[-1]
    return found


def _layer(module: Any) -> Any:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _shape(layer: Any) -> tuple[int, int]:
    if isinstance(layer, Conv1D):
        return int(layer.weight.shape[1]), int(layer.weight.shape[0])
    return int(layer.out_features), int(layer.in_features)


def _widened(layer: Any) -> Tensor:
    return _oriented(layer, dequantize_module_weight(layer).detach().to(torch.float32, copy=True))


def _oriented(layer: Any, weight: Tensor) -> Tensor:
    """[out, in], however the layer keeps it."""
    return weight.T if isinstance(layer, Conv1D) else weight
