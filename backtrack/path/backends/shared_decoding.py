"""Decode several strengths of one LoRA in one batch, where decoding waits for latency.

A decoding step of a small batch costs the same for one row as for several, so rows at other
strengths of the same adapter ride along: LoRA's own scaling is given one number a row
(six strengths at batch 1: 68 ms one after the other, 16 ms so). What was decoded for a point that
is expected next is kept until the model stands there and is asked the same.

Promised: the same greedy search; what comes back differs from decoding alone by rounding only.
Not promised: sampling, beams, and every adapter but plain LoRA are decoded alone, as are batches
past `MAX_ROWS`, where arithmetic is the bound and sharing gains nothing.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import Embedding as LoraEmbedding
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from backtrack.path.backends.attached import Attached
    from backtrack.point import Point

MAX_ROWS = {"cpu": 8, "cuda": 64}
"""Rows of a shared batch. On two CPU cores 4 rows gain a factor of 4, 24 rows nothing."""


class SharedDecoding:
    """Stands in for the `generate` of an attached LoRA model."""

    def __init__(self, stand: Attached) -> None:
        self._stand = stand
        self._alone: Any = stand.model.generate
        self._here: Point | None = None
        self._expected: tuple[Point, ...] = ()
        self._decoded: dict[tuple[Point, str], Tensor] = {}
        vars(stand.model)["generate"] = self.generate

    def expect(self, points: Sequence[Point]) -> None:
        """Say where the model will stand next, in any order."""
        self._expected = tuple(point for point in points if not point.is_base)
        self._forget()

    def arrive(self, point: Point) -> None:
        """Say where the model stands."""
        self._here = point
        self._forget()

    def _forget(self) -> None:
        wanted = {self._here, *self._expected}
        self._decoded = {k: rows for k, rows in self._decoded.items() if k[0] in wanted}

    def generate(self, *args: Any, **asked: Any) -> Any:
        """Token ids as the model's own `generate` gives them."""
        here = self._here
        if here is None or args or not _is_greedy(asked):
            return self._alone(*args, **asked)
        key = _key(asked)
        if (here, key) in self._decoded:
            return self._decoded[here, key].clone()
        company = self._company(len(asked["input_ids"]))
        if not company:
            return self._alone(**asked)
        everyone = (here, *company)
        with _one_strength_a_row(self._stand, everyone, len(asked["input_ids"])):
            made = self._alone(**_repeated(asked, len(everyone)))
        for point, rows in zip(everyone, made.chunk(len(everyone)), strict=True):
            self._decoded[point, key] = rows
        return self._decoded[here, key].clone()

    def _company(self, rows: int) -> tuple[Point, ...]:
        """Points to be decoded along, as many as there is room for."""
        if self._here is None or self._here.is_base:
            return ()
        room = MAX_ROWS.get(self._stand.model.device.type, 0) // rows - 1
        others = [
            point
            for point in self._expected
            if point.step == self._here.step and point.profile == self._here.profile == "uniform"
        ]
        return tuple(point for point in others if point != self._here)[: max(room, 0)]


def can_share(stand: Attached) -> bool:
    """Whether every part of an adapter takes its strength from LoRA's scaling."""
    layers: list[Any] = [m for m in stand.model.modules() if isinstance(m, BaseTunerLayer)]
    return (
        {type(layer) for layer in layers} <= {LoraLinear, LoraEmbedding}
        and not any(layer.lora_variant for layer in layers)
        and all(".lora_" in handle.name for handle in stand.handles)
        and not any(handle.name.endswith(".bias") for handle in stand.handles)
    )


@contextmanager
def _one_strength_a_row(stand: Attached, points: Sequence[Point], rows: int) -> Iterator[None]:
    """The adapter at full strength, scaled row by row; afterwards it stands at the first point."""
    adapter = stand.model.active_adapter
    layers: list[Any] = [m for m in stand.model.modules() if isinstance(m, BaseTunerLayer)]
    kept = [layer.scaling[adapter] for layer in layers]
    alphas = torch.tensor([point.alpha for point in points], device=stand.model.device)
    strengths = alphas.repeat_interleave(rows)[:, None, None]
    stand.place(points[0].model_copy(update={"alpha": 1.0}), {})
    try:
        for layer, scaling in zip(layers, kept, strict=True):
            layer.scaling[adapter] = scaling * strengths
        yield
    finally:
        for layer, scaling in zip(layers, kept, strict=True):
            layer.scaling[adapter] = scaling
        stand.place(points[0], {})


def _is_greedy(asked: dict[str, Any]) -> bool:
    settings = asked.get("generation_config")
    default = settings.do_sample if settings is not None else True
    beams = asked.get("num_beams", settings.num_beams if settings is not None else 1)
    has_ids = isinstance(asked.get("input_ids"), torch.Tensor)
    has_more = asked.get("return_dict_in_generate") or "streamer" in asked
    return has_ids and not has_more and not asked.get("do_sample", default) and beams in {None, 1}


def _repeated(asked: dict[str, Any], times: int) -> dict[str, Any]:
    """The same request, once a strength."""
    for criterion in asked.get("stopping_criteria") or ():
        if isinstance(getattr(criterion, "done_tracker", None), list):
            criterion.done_tracker = criterion.done_tracker * times  # lm-eval's, one flag a row
    rows = {"input_ids", "attention_mask"} & asked.keys()
    return asked | {name: asked[name].repeat(times, 1) for name in rows}


def _key(asked: dict[str, Any]) -> str:
    """A digest of all that decides what is decoded, but the weights."""
    digest = hashlib.sha256()
    for name in sorted(asked):
        value = asked[name]
        if isinstance(value, torch.Tensor):
            value = value.tolist()
        elif name == "generation_config":
            value = value.to_json_string(use_diff=False)
        elif name == "stopping_criteria":
            value = [_described(criterion) for criterion in value or ()]
        digest.update(f"{name}={value!r};".encode())
    return digest.hexdigest()


def _described(criterion: Any) -> tuple[Any, ...]:
    plain = (str, int, float, tuple)
    fields = {k: v for k, v in vars(criterion).items() if isinstance(v, plain)}
    return type(criterion).__name__, tuple(sorted(fields.items()))
