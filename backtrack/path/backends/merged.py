"""Backends that write effective weights into a plain model, always from stored ends.

There are three: whole models on the line, adapters on the line, and adapters on their native
curve. Each holds the live model and its stored ends; nothing is computed from the live weights.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import torch
from peft import set_peft_model_state_dict

from backtrack.path.adapters.effective_weights import effective_weights, overwritten_weights
from backtrack.path.adapters.opening import open_adapter
from backtrack.path.backends.attached import Attached
from backtrack.path.backends.end_storage import choose_storage, store_end, total_bytes
from backtrack.path.backends.line_mixture import LineMixture
from backtrack.path.curves import rounding
from backtrack.path.models.configuration import load_as_checkpoint
from backtrack.path.models.embeddings import (
    embedding_names,
    fit_vocabulary,
    is_tied,
    trained_rows,
    untie,
    untie_head,
    vocabulary_size,
)
from backtrack.path.models.full_checkpoint import FullCheckpoint
from backtrack.path.models.loading import load_base, moving_weights, probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from backtrack.path.adapters.effective_weights import WeightWriter
    from backtrack.path.backends.end_storage import EndStorage
    from backtrack.path.curves import Law
    from backtrack.path.profiles import Strength
    from backtrack.point import Point
    from backtrack.run.directory import Run


class _MergedOnLine:
    """A backend whose points lie on a line; abstract."""

    law: Law = "linear"
    _line: LineMixture

    @property
    def modules(self) -> tuple[str, ...]:
        return self._line.modules

    def prepare(self, point: Point, multipliers: Mapping[str, float]) -> Callable[[], None]:
        self._line.load(point.step)
        return lambda: self._line.write(point, multipliers)

    def distance(self, point: Point, multipliers: Mapping[str, float]) -> float:
        return self._line.distance(point, multipliers)

    def strengths(self, step: int) -> dict[str, Strength]:
        return self._line.strengths(step)


class MergedFullModel(_MergedOnLine):
    """Full fine-tuning: every parameter and every saved buffer moves on the line."""

    tolerance = 0.0

    def __init__(self, run: Run, device: torch.device, storage: EndStorage | None) -> None:
        self.model: PreTrainedModel = load_as_checkpoint(run, device)
        final = FullCheckpoint.read(run, run.final.step)
        stock = final.load(str(self.model.dtype).removeprefix("torch."), device)
        if not is_tied(stock):
            untie_head(self.model)
        trained = final.weights(self.model)
        rows = vocabulary_size(self.model), trained_rows(self.model, trained)
        self.vocabulary, self.is_resized = min(rows), len(set(rows)) > 1
        self.probe_base = probe(self.model, self.vocabulary)
        self.probe_final = probe(stock, self.vocabulary)
        del stock, final  # free their memory before the ends are stored
        fit_vocabulary(self.model, trained)
        live = moving_weights(self.model)
        chosen = storage or choose_storage(2 * total_bytes(live), device)
        self.end_storage: EndStorage | None = chosen
        self._line = LineMixture(
            live,
            chosen,
            device,
            lambda step: FullCheckpoint.read(run, step).weights(self.model),
        )
        self._line.load(run.final.step, trained)


class MergedAdapterOnLine(_MergedOnLine):
    """An adapter that PEFT can merge, on the line from the base to its effective weights."""

    def __init__(self, run: Run, device: torch.device, storage: EndStorage | None) -> None:
        self.model: PreTrainedModel = load_base(run.base, device)
        parameters = dict(self.model.named_parameters())
        chosen = storage or choose_storage(2 * total_bytes(parameters), device)
        self.end_storage: EndStorage | None = chosen
        self._opened = open_adapter(run, _adapter_device(chosen, device))
        _store_base_weights(self._opened.model, chosen)
        self.vocabulary, self.is_resized = self._opened.vocabulary, self._opened.is_resized
        self.probe_base = probe(self.model, self.vocabulary)
        self.probe_final = self._opened.probe_final
        self.tolerance = rounding(self.model.dtype)
        adapted = [name for name, _ in effective_weights(self._opened.model)]
        self._extra_names = [name for name in self._opened.originals if name not in adapted]
        final = self._effective()
        fit_vocabulary(self.model, final)
        untie(self.model, {name: final[name] for name in adapted})
        self._line = LineMixture(_live(self.model, final), chosen, device, self._read)
        self._line.load(run.final.step, final)

    def _read(self, step: int) -> dict[str, Tensor]:
        set_peft_model_state_dict(self._opened.model, self._opened.read(step))
        return self._effective()

    def _effective(self) -> dict[str, Tensor]:
        """The weights that the adapter changes, at alpha 1, in fp32."""
        writers = _writers(self._opened.model, self._extra_names)
        return _written(writers, self._opened.base_value)


class MergedAdapterOnCurve:
    """An adapter on its native curve: its handles are set, then each layer is merged."""

    def __init__(self, run: Run, device: torch.device, storage: EndStorage | None) -> None:
        self.model: PreTrainedModel = load_base(run.base, device)
        parameters = dict(self.model.named_parameters())
        chosen = storage or choose_storage(total_bytes(parameters), device)
        self.end_storage: EndStorage | None = chosen
        self._adapter = Attached(run, _adapter_device(chosen, device))
        _store_base_weights(self._adapter.model, chosen)
        self.vocabulary, self.is_resized = self._adapter.vocabulary, self._adapter.is_resized
        self.probe_base = probe(self.model, self.vocabulary)
        self.probe_final = self._adapter.probe_final
        self.tolerance = rounding(self.model.dtype)
        self.law = self._adapter.law
        self.modules = self._adapter.modules
        adapted = [name for name, _ in effective_weights(self._adapter.model)]
        self._extra_names = [name for name in self._adapter.originals if name not in adapted]
        self._base = {n: self._adapter.base_value(n) for n in [*adapted, *self._extra_names]}
        fit_vocabulary(self.model, self._base)
        embeddings = embedding_names(self.model)
        every = effective_weights(self._adapter.model)
        ends = (writer for writer in every if writer[0] in embeddings)
        untie(self.model, _written(ends, self._adapter.base_value))
        self._live = _live(self.model, self._base)

    def prepare(self, point: Point, multipliers: Mapping[str, float]) -> Callable[[], None]:
        if point.is_base:
            return self._write_base
        set_adapter = self._adapter.prepare(point, multipliers)

        def write() -> None:
            set_adapter()
            for name, write_weight in _writers(self._adapter.model, self._extra_names):
                write_weight(self._live[name])

        return write

    def _write_base(self) -> None:
        for name, base in self._base.items():
            self._live[name].copy_(base)

    def distance(self, point: Point, multipliers: Mapping[str, float]) -> float:
        return self._adapter.distance(point, multipliers)

    def strengths(self, step: int) -> dict[str, Strength]:
        return self._adapter.strengths(step)


def _writers(model: PeftModel, extra_names: Iterable[str]) -> Iterator[WeightWriter]:
    """Every weight that the adapter changes, then the extra parameters trained beside it."""
    return chain(effective_weights(model), overwritten_weights(model, extra_names))


def _written(
    writers: Iterable[WeightWriter], base_value: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """The weights that writers write, by name, in fp32 and in the shapes of the base's values."""
    weights: dict[str, Tensor] = {}
    for name, write in writers:
        weights[name] = torch.empty_like(base_value(name), dtype=torch.float32)
        write(weights[name])
    return weights


def _adapter_device(storage: EndStorage, device: torch.device) -> torch.device:
    """Device of the second model, which holds the adapter and the base end."""
    return device if storage == "device" else torch.device("cpu")


def _store_base_weights(model: PeftModel, storage: EndStorage) -> None:
    """Move the base weights of the second model into the storage for ends."""
    if storage != "device":
        frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
        for name, stored in store_end(frozen, storage, torch.device("cpu")).items():
            frozen[name].data = stored


def _live(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {name: parameters[name] for name in names}
