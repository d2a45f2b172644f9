"""Backends that write effective weights into a plain model, always from stored ends.

There are three: whole models on the line, adapters on the line, and adapters on their native
curve. Each holds the live model and its stored ends; nothing is computed from the live weights.

Memory, in copies of the base, on the device or where the ends are stored: whole models 3 (live,
base end, checkpoint), adapters 2 (live, base end), and no more while a run opens: whole models are
loaded one after the other. An adapter's trained end is never held: each layer is merged in fp32
when it is written, also on the line. A model may be spread over several devices.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import chain
from typing import TYPE_CHECKING

import torch
from peft import set_peft_model_state_dict
from typing_extensions import override

from backtrack.path.adapters.effective_weights import effective_weights, overwritten_weights
from backtrack.path.adapters.opening import open_adapter
from backtrack.path.adapters.strength import is_weight, relative_strength
from backtrack.path.backends.attached import Attached
from backtrack.path.backends.end_storage import choose_storage, store_end
from backtrack.path.backends.line_mixture import LineMixture, module_of
from backtrack.path.curves import line, rounding
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
from backtrack.path.profiles import summed

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping

    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from backtrack.path.adapters.effective_weights import WeightWriter
    from backtrack.path.adapters.opening import OpenedAdapter
    from backtrack.path.backends.end_storage import EndStorage
    from backtrack.path.curves import Law
    from backtrack.path.profiles import Strength
    from backtrack.point import Point
    from backtrack.run.directory import Run


class MergedFullModel:
    """Full fine-tuning: every parameter and every saved buffer moves on the line."""

    law: Law = "linear"
    tolerance = 0.0

    def __init__(self, run: Run, device: torch.device, storage: EndStorage | None) -> None:
        shell = load_as_checkpoint(run, torch.device("meta"))  # shapes and names, no weights
        final = FullCheckpoint.read(run, run.final.step)
        stock = final.load(str(shell.dtype).removeprefix("torch."), device)
        is_untied = not is_tied(stock)
        if is_untied:
            untie_head(shell)
        trained = final.weights(shell)
        rows = vocabulary_size(shell), trained_rows(shell, trained)
        self.vocabulary, self.is_resized = min(rows), len(set(rows)) > 1
        self.probe_final = probe(stock, self.vocabulary)
        del stock, final  # free their memory before the base is loaded
        self.model: PreTrainedModel = load_as_checkpoint(run, device)
        if is_untied:
            untie_head(self.model)
        self.probe_base = probe(self.model, self.vocabulary)
        fit_vocabulary(self.model, trained)
        live = moving_weights(self.model)
        chosen = storage or choose_storage(live, 2)
        self.end_storage: EndStorage | None = chosen
        model = self.model  # a reader that held `self` would keep both alive
        self._line = LineMixture(
            live, chosen, lambda step: FullCheckpoint.read(run, step).weights(model)
        )
        self._line.load(run.final.step, trained)

    @property
    def moving(self) -> Mapping[str, Tensor]:
        return self._line.live

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


class _MergedAdapter(ABC):
    """Effective weights of an adapter, computed layer by layer; abstract.

    A second model holds the adapter and the base end. Memory: the live model, the second one and
    one layer in fp32.
    """

    tolerance: float

    def __init__(self, run: Run, device: torch.device, storage: EndStorage | None) -> None:
        self.model: PreTrainedModel = load_base(run.base, device)
        parameters = dict(self.model.named_parameters())
        chosen = storage or choose_storage(parameters, 1)
        self.end_storage: EndStorage | None = chosen
        opened = self._open(run, device if chosen == "device" else torch.device("cpu"))
        self._adapted: PeftModel = opened.model
        _store_base_weights(self._adapted, chosen)
        self.vocabulary, self.is_resized = opened.vocabulary, opened.is_resized
        self.probe_base = probe(self.model, self.vocabulary)
        self.probe_final = opened.probe_final
        self.tolerance = rounding(self.model.dtype)
        adapted = [name for name, _ in effective_weights(self._adapted)]
        self._extra_names = [name for name in opened.originals if name not in adapted]
        self._base = {name: opened.base_value(name) for name in [*adapted, *self._extra_names]}
        fit_vocabulary(self.model, self._base)
        embeddings = embedding_names(self.model).intersection(adapted)
        untie(self.model, dict(self._effective(embeddings)))
        live = dict(self.model.named_parameters(remove_duplicate=False))
        self.moving = {name: live[name] for name in self._base}
        # Loading a KaSA adapter rewrites the second model's base.
        rewritten = {n: w for n, w in self.moving.items() if not _is_same(w, self._base[n])}
        self._base |= store_end(rewritten, chosen, rewritten)

    @abstractmethod
    def _open(self, run: Run, device: torch.device) -> OpenedAdapter:
        """Load the second model."""

    def _writers(self) -> Iterator[WeightWriter]:
        """Every weight that the adapter changes, then the extra parameters trained beside it."""
        return chain(
            effective_weights(self._adapted), overwritten_weights(self._adapted, self._extra_names)
        )

    def _effective(self, names: Container[str]) -> Iterator[tuple[str, Tensor]]:
        """Each weight as the adapter changes it now, in fp32 on the live weight's device."""
        live = dict(self.model.named_parameters(remove_duplicate=False))
        for name, write in self._writers():
            if name in names:
                shape = self._base[name].shape
                out = torch.empty(shape, dtype=torch.float32, device=live[name].device)
                write(out)
                yield name, out

    def _write_base(self) -> None:
        for name, base in self._base.items():
            self.moving[name].copy_(base)


class MergedAdapterOnLine(_MergedAdapter):
    """An adapter that PEFT can merge, on the line from the base to its effective weights."""

    law: Law = "linear"

    @override
    def _open(self, run: Run, device: torch.device) -> OpenedAdapter:
        self._opened = open_adapter(run, device)
        self._step = run.final.step
        self._measured: dict[str, Strength] = {}
        return self._opened

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(module_of(name) for name in self._base))

    def prepare(self, point: Point, multipliers: Mapping[str, float]) -> Callable[[], None]:
        if point.is_base:
            return self._write_base
        self._load(point.step)

        def write() -> None:
            for name, trained in self._effective(self._base):
                alpha = point.alpha * multipliers.get(module_of(name), 1.0)
                line(self._base[name], trained, alpha, out=self.moving[name])

        return write

    def distance(self, point: Point, multipliers: Mapping[str, float]) -> float:
        scaled = (
            math.sqrt(strength.moved) * multipliers.get(module_of(name), 1.0)
            for name, strength in self._strengths(point.step).items()
        )
        return point.alpha * math.hypot(*scaled)

    def strengths(self, step: int) -> dict[str, Strength]:
        """Strength of each module's weight at alpha 1; see `profiles`."""
        found = self._strengths(step).items()
        return summed((module_of(n), s) for n, s in found if is_weight(n, self._base[n]))

    def _strengths(self, step: int) -> dict[str, Strength]:
        self._load(step)
        if not self._measured:
            self._measured = {
                name: relative_strength(trained, self._base[name])
                for name, trained in self._effective(self._base)
            }
        return self._measured

    def _load(self, step: int) -> None:
        """Set the second model's adapter to a checkpoint."""
        if step != self._step:
            tensors = self._opened.read(step)
            self._step, self._measured = 0, {}  # read again if setting the adapter is interrupted
            set_peft_model_state_dict(self._adapted, tensors)
            self._step = step


class MergedAdapterOnCurve(_MergedAdapter):
    """An adapter on its native curve: its handles are set, then each layer is merged."""

    @override
    def _open(self, run: Run, device: torch.device) -> OpenedAdapter:
        self._adapter = Attached(run, device)
        self.law = self._adapter.law
        self.modules = self._adapter.modules
        return self._adapter.opened

    def prepare(self, point: Point, multipliers: Mapping[str, float]) -> Callable[[], None]:
        if point.is_base:
            return self._write_base
        set_adapter = self._adapter.prepare(point, multipliers)

        def write() -> None:
            set_adapter()
            for name, write_weight in self._writers():
                write_weight(self.moving[name])

        return write

    def distance(self, point: Point, multipliers: Mapping[str, float]) -> float:
        return self._adapter.distance(point, multipliers)

    def strengths(self, step: int) -> dict[str, Strength]:
        return self._adapter.strengths(step)


def _is_same(live: Tensor, base: Tensor) -> bool:
    return torch.equal(live, base.to(live.device))


def _store_base_weights(model: PeftModel, storage: EndStorage) -> None:
    """Move the base weights of the second model into the storage for ends."""
    if storage != "device":
        frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
        for name, stored in store_end(frozen, storage, frozen).items():
            frozen[name].data = stored
