"""Stand at points with effective weights written into a plain model, always from stored ends.

Three kinds: whole models on the dense line, adapters on the dense line, and adapters on their own
curve. Each holds the live model and, beside it, its ends; nothing is ever computed from the live
weights. On the line a visit reads both ends once and writes the live weights once.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING

import torch
from peft import set_peft_model_state_dict

from backtrack.path.adapters.effective_weights import effective_parts, overwritten_parts
from backtrack.path.adapters.opening import open_adapter
from backtrack.path.adapters.strength import relative
from backtrack.path.backends.attached import Attached
from backtrack.path.backends.stored_ends import choose, store, total_bytes
from backtrack.path.curves import line, rounding
from backtrack.path.models.embeddings import fit_vocabulary, num_tokens, untie
from backtrack.path.models.loading import (
    load_base,
    load_checkpoint,
    load_trained,
    probe,
    require_shapes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from backtrack.path.adapters.effective_weights import Part
    from backtrack.path.backends.stored_ends import Keep
    from backtrack.path.curves import Law
    from backtrack.path.profiles import Strength
    from backtrack.point import Point
    from backtrack.run.directory import Run

    Tensors = Mapping[str, Tensor]


class DenseLine:
    """Named tensors of a live model on the line between two stored ends."""

    def __init__(
        self, live: Tensors, keep: Keep, device: torch.device, read: Callable[[int], Tensors]
    ) -> None:
        """Keep the base end: what `live` holds now; `read` gives the far end at a step."""
        self._live = live
        self._keep: Keep = keep
        self._device = device
        self._read = read
        self._base = store(live, keep, device)
        self._tuned: dict[str, Tensor] = {}
        self._step = 0
        self._norms: dict[str, float] = {}

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_module(name) for name in self._live))

    def load(self, step: int, tuned: Tensors | None = None) -> None:
        """Make a checkpoint the far end, if it is not; `tuned` are its tensors, if at hand."""
        if step not in {0, self._step}:
            self._tuned, self._norms = {}, {}
            tuned = self._read(step) if tuned is None else tuned
            require_shapes(tuned, self._base, f"step {step}")
            self._tuned, self._step = store(tuned, self._keep, self._device), step

    def place(self, point: Point, multipliers: Mapping[str, float]) -> None:
        self.load(point.step)
        for name, tuned in self._tuned.items():
            alpha = point.alpha * multipliers.get(_module(name), 1.0)
            line(self._base[name], tuned, alpha, out=self._live[name])

    def distance(self, point: Point, multipliers: Mapping[str, float]) -> float:
        self.load(point.step)
        if not self._norms:
            self._norms = {n: math.sqrt(self._strength(n).moved) for n in self._tuned}
        shares = {n: multipliers.get(_module(n), 1.0) for n in self._norms}
        return point.alpha * math.hypot(*(n * shares[name] for name, n in self._norms.items()))

    def strengths(self, step: int) -> dict[str, Strength]:
        """Strength of each module's weight at alpha 1; see `profiles`."""
        self.load(step)
        weights = [name for name in self._tuned if name.endswith(".weight")]
        return {_module(name): self._strength(name) for name in weights}

    def _strength(self, name: str) -> Strength:
        base, tuned = (tensors[name].to(self._device) for tensors in (self._base, self._tuned))
        return relative(tuned, base)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


class _OnLine:
    """A stand whose points lie on a dense line; abstract."""

    law: Law = "linear"
    _line: DenseLine

    @property
    def modules(self) -> tuple[str, ...]:
        return self._line.modules

    def place(self, point: Point, multipliers: Mapping[str, float]) -> None:
        self._line.place(point, multipliers)

    def distance(self, point: Point, multipliers: Mapping[str, float]) -> float:
        return self._line.distance(point, multipliers)

    def strengths(self, step: int) -> dict[str, Strength]:
        return self._line.strengths(step)


class MergedModels(_OnLine):
    """Whole models: every parameter on the line."""

    tolerance = 0.0

    def __init__(self, run: Run, device: torch.device, keep: Keep | None) -> None:
        self.model: PreTrainedModel = load_base(run.base, device)
        self.vocabulary = num_tokens(self.model)
        self.probe_base = probe(self.model)
        step = run.final.step
        final = load_trained(run, step, self.model)
        self.probe_final = self._probe_trained(run, final, device)
        fit_vocabulary(self.model, final)
        live = dict(self.model.named_parameters())
        chosen = keep or choose(2 * total_bytes(live), device)
        self.keep: Keep | None = chosen
        self._line = DenseLine(
            live, chosen, device, lambda step: load_trained(run, step, self.model)
        )
        self._line.load(step, final)

    def _probe_trained(self, run: Run, final: Tensors, device: torch.device) -> Tensor:
        """Logits of the last checkpoint as stock transformers loads it, in the live type."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        trained = load_checkpoint(run, run.final.step, final, dtype, device)
        return probe(trained, self.vocabulary)


class MergedLine(_OnLine):
    """An adapter of any kind PEFT can merge, on the dense line to its effective weights."""

    def __init__(self, run: Run, device: torch.device, keep: Keep | None) -> None:
        self.model: PreTrainedModel = load_base(run.base, device)
        every = dict(self.model.named_parameters())
        chosen = keep or choose(2 * total_bytes(every), device)
        self.keep: Keep | None = chosen
        self._opened = open_adapter(run, _beside(chosen, device))
        _shelve(self._opened.model, chosen)
        self.vocabulary = self._opened.vocabulary
        self.probe_base = probe(self.model)
        self.probe_final = self._opened.probe_final
        self.tolerance = rounding(self.model.dtype)
        by_layers = [name for name, _ in effective_parts(self._opened.model)]
        self._riders = [name for name in self._opened.originals if name not in by_layers]
        final = self._effective()
        fit_vocabulary(self.model, final)
        untie(self.model, by_layers)
        self._line = DenseLine(_live(self.model, final), chosen, device, self._read)
        self._line.load(run.final.step, final)

    def _read(self, step: int) -> Tensors:
        set_peft_model_state_dict(self._opened.model, self._opened.read(step))
        return self._effective()

    def _effective(self) -> dict[str, Tensor]:
        """Weights that the adapter changes, at full strength, in fp32."""
        found: dict[str, Tensor] = {}
        model = self._opened.model
        for name, write in chain(effective_parts(model), overwritten_parts(model, self._riders)):
            found[name] = torch.empty_like(self._opened.base_value(name), dtype=torch.float32)
            write(found[name])
        return found


class MergedNative:
    """An adapter on its own curve: its handles move, then each layer is merged."""

    def __init__(self, run: Run, device: torch.device, keep: Keep | None) -> None:
        self.model: PreTrainedModel = load_base(run.base, device)
        chosen = keep or choose(total_bytes(dict(self.model.named_parameters())), device)
        self.keep: Keep | None = chosen
        self._adapter = Attached(run, _beside(chosen, device))
        _shelve(self._adapter.model, chosen)
        self.vocabulary = self._adapter.vocabulary
        self.probe_base = probe(self.model)
        self.probe_final = self._adapter.probe_final
        self.tolerance = rounding(self.model.dtype)
        self.law = self._adapter.law
        self.modules = self._adapter.modules
        by_layers = [name for name, _ in effective_parts(self._adapter.model)]
        self._riders = [name for name in self._adapter.originals if name not in by_layers]
        self._base = {n: self._adapter.base_value(n) for n in [*by_layers, *self._riders]}
        fit_vocabulary(self.model, self._base)
        untie(self.model, by_layers)
        self._live = _live(self.model, self._base)

    def place(self, point: Point, multipliers: Mapping[str, float]) -> None:
        if point.is_base:
            for name, base in self._base.items():
                self._live[name].copy_(base)
            return
        self._adapter.place(point, multipliers)
        for name, write in self._parts():
            write(self._live[name])

    def distance(self, point: Point, multipliers: Mapping[str, float]) -> float:
        return self._adapter.distance(point, multipliers)

    def strengths(self, step: int) -> dict[str, Strength]:
        return self._adapter.strengths(step)

    def _parts(self) -> Iterator[Part]:
        model = self._adapter.model
        return chain(effective_parts(model), overwritten_parts(model, self._riders))


def _beside(keep: Keep, device: torch.device) -> torch.device:
    """Where a second model goes that holds the base end."""
    return device if keep == "device" else torch.device("cpu")


def _shelve(model: PeftModel, keep: Keep) -> None:
    """Move a second model's base weights to where ends are kept."""
    if keep != "device":
        every = {n: p for n, p in model.named_parameters() if not p.requires_grad}
        for name, kept in store(every, keep, torch.device("cpu")).items():
            every[name].data = kept


def _live(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Tensor]:
    every = dict(model.named_parameters(remove_duplicate=False))
    return {name: every[name] for name in names}
