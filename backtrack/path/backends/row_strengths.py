"""Several strengths of one attached LoRA in one batch, by LoRA's own scaling.

PEFT multiplies `B A x` by a number; given a tensor [rows, 1, 1] it multiplies each row of the
batch by its own. Exact for plain LoRA on linear layers and embeddings only.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import Embedding as LoraEmbedding
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backtrack.path.backends.attached import Attached
    from backtrack.point import Point

MAX_ROWS = {"cpu": 8, "cuda": 64}
"""Rows of a shared batch. On two CPU cores 4 rows gain a factor of 4, 24 rows nothing."""


class RowStrengths:
    """Gives each row of a batch a strength of its own."""

    def __init__(self, backend: Attached) -> None:
        self._backend = backend

    @property
    def max_rows(self) -> int:
        """Rows up to which a larger batch costs no more on this device; 0 if not known."""
        return MAX_ROWS.get(self._backend.model.device.type, 0)

    def shared(self, here: Point, points: Sequence[Point]) -> tuple[Point, ...]:
        """Those of the points that differ from `here` in strength only."""
        if here.is_base or here.profile != "uniform":
            return ()
        alike = [p for p in points if (p.step, p.profile) == (here.step, here.profile)]
        return tuple(point for point in alike if point != here)

    @contextmanager
    def by_row(self, points: Sequence[Point]) -> Iterator[None]:
        """Scale a batch that holds one row for each of the points.

        Afterwards the model is at the first point.
        """
        model = self._backend.model
        adapter = model.active_adapter
        layers = _tuner_layers(model)
        scalings = [layer.scaling[adapter] for layer in layers]
        alphas = torch.tensor([point.alpha for point in points], device=model.device)
        strengths = alphas[:, None, None]
        try:
            self._place(points[0].model_copy(update={"alpha": 1.0}))
            for layer, scaling in zip(layers, scalings, strict=True):
                device = next(layer.parameters()).device  # of a model on several cards
                layer.scaling[adapter] = scaling * strengths.to(device)
            yield
        finally:
            for layer, scaling in zip(layers, scalings, strict=True):
                layer.scaling[adapter] = scaling
            self._place(points[0])

    @torch.no_grad()
    def _place(self, point: Point) -> None:
        self._backend.prepare(point, {})()


def can_scale_rows(backend: Attached) -> bool:
    """Whether every part of an adapter takes its strength from LoRA's scaling."""
    layers = _tuner_layers(backend.model)
    return (
        {type(layer) for layer in layers} <= {LoraLinear, LoraEmbedding}
        and not any(layer.lora_variant for layer in layers)
        and all(".lora_" in handle.name for handle in backend.handles)
        and not any(handle.name.endswith(".bias") for handle in backend.handles)
    )


def _tuner_layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
