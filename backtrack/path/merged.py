"""Stand at points with effective weights written into a plain model, always from stored ends."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from peft import set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper

from backtrack.errors import PlacementError
from backtrack.path.attached import Attached
from backtrack.path.curves import line
from backtrack.path.handles import plain_name
from backtrack.path.loading import (
    load_adapter,
    load_base,
    load_model,
    load_trained,
    probe,
    read_adapter_config,
)
from backtrack.point import Point
from backtrack.run.reader import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from backtrack.run.directory import Run


class MergedLine:
    """Effective weights on the dense line, written into a plain model from two stored ends."""

    def __init__(self, run: Run, device: torch.device, *, adapter: WholeAdapter | None) -> None:
        self._run = run
        self._adapter = adapter
        self.model: PreTrainedModel = load_base(run.base, device)
        self.probe_base = probe(self.model)
        self._base = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self._live = dict(self.model.named_parameters())
        self._step = 0
        self._tuned: dict[str, Tensor] = {}
        self._norm = 0.0
        self.tolerance = _rounding(self.model.dtype) if adapter else 0.0
        self.probe_final = adapter.probe_final if adapter else self._probe_trained(device)

    def place(self, point: Point) -> None:
        if point.step:
            self._load(point.step)
        for name, tuned in self._tuned.items():
            line(self._base[name], tuned, point.alpha, out=self._live[name])

    def distance(self, point: Point) -> float:
        self._load(point.step)
        return point.alpha * self._norm

    def _load(self, step: int) -> None:
        """Make the step the far end; what the last one moved goes back to the base."""
        if step == self._step:
            return
        for name in self._tuned:
            self._live[name].copy_(self._base[name])
        self._tuned = self._read(step)
        self._step = step
        ways = (
            self._base[n].float().cpu() - tuned.float().cpu() for n, tuned in self._tuned.items()
        )
        self._norm = math.sqrt(sum(float(way.norm()) ** 2 for way in ways))

    def _read(self, step: int) -> dict[str, Tensor]:
        if self._adapter is None:
            return load_trained(self._run, step, self.model)
        self._adapter.place(Point(step=step, alpha=1.0))
        return dict(effective_weights(self._adapter.model))

    def _probe_trained(self, device: torch.device) -> Tensor:
        """Logits of the last checkpoint as stock transformers loads it, in the live type."""
        folder = self._run.folder(self._run.final.step)
        dtype = str(self.model.dtype).removeprefix("torch.")
        trained = load_model(
            folder,
            dtype,
            device,
            trust_remote_code=self._run.base.trust_remote_code,
            weights=read_checkpoint(self._run, self._run.final.step),
        )
        return probe(trained)


class MergedNative:
    """Effective weights on the method's own curve: the adapter moves, each layer is merged."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self._adapter = Attached(run, device)
        self.model: PreTrainedModel = load_base(run.base, device)
        self.probe_base = self._adapter.probe_base
        self.probe_final = self._adapter.probe_final
        self.tolerance = _rounding(self.model.dtype)
        self._base = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self._live = dict(self.model.named_parameters())

    def place(self, point: Point) -> None:
        self._adapter.place(point)
        for name, weight in effective_weights(self._adapter.model):
            self._live[name].copy_(self._base[name] if point.is_base else weight)

    def distance(self, point: Point) -> float:
        return self._adapter.distance(point)


class WholeAdapter:
    """An adapter of any kind PEFT can merge, at full strength: the far end of a dense line."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self._run = run
        folder = run.folder(run.final.step)
        read_adapter_config(folder)
        self.model: PeftModel = load_adapter(load_base(run.base, device), folder)
        self.probe_final = probe(self.model)

    def place(self, point: Point) -> None:
        set_peft_model_state_dict(self.model, read_checkpoint(self._run, point.step))


@torch.no_grad()
def effective_weights(model: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """Weights a plain model needs to compute what an adapted one does, where they differ.

    Each layer is copied, widened to fp32 and merged on its own, so the live model is never merged
    and unmerged in place (which drifts) and memory for one layer is enough.

    Yields:
        The name in the plain model, and the weight in fp32.

    Raises:
        PlacementError: PEFT cannot merge a layer.
    """
    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            inner: Any = module.modules_to_save[model.active_adapter]
            for name, parameter in inner.named_parameters():
                yield plain_name(f"{path}.{name}"), parameter.detach().float()
        elif isinstance(module, BaseTunerLayer):
            yield from _merged_layer(path, module)
    if getattr(model.peft_config[model.active_adapter], "bias", "none") != "none":
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") and "modules_to_save" not in name:
                yield plain_name(name), parameter.detach().float()


def _merged_layer(path: str, module: BaseTunerLayer) -> Iterator[tuple[str, Tensor]]:
    layer: Any = copy.deepcopy(module)
    layer.float()
    try:
        layer.merge()
    except Exception as error:
        raise PlacementError(
            f"PEFT cannot merge {path}: {error}. Stand attached instead."
        ) from error
    for name, parameter in layer.get_base_layer().named_parameters():
        yield plain_name(f"{path}.{name}"), parameter.detach()


def _rounding(dtype: torch.dtype) -> float:
    """How far merging may move logits, as a share of the largest, by rounding in `dtype`."""
    return 1e-4 if dtype == torch.float32 else 64 * torch.finfo(dtype).eps / 4
