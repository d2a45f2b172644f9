"""Stand at points with the adapter on the model: its handles are set, no weight is copied.

Promised: both ends are exact in any type, since a handle at its end is copied, not computed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from peft import set_peft_model_state_dict

from backtrack.errors import PlacementError, PointError
from backtrack.path.curves import coefficient, line
from backtrack.path.handles import find_handles, require_native
from backtrack.path.loading import load_adapter, load_base, probe, read_adapter_config
from backtrack.run.reader import read_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from peft import PeftModel
    from torch import Tensor

    from backtrack.point import Point
    from backtrack.run.directory import Run

KEPT_STEPS = 4
"""Checkpoints whose tensors are kept at hand; the oldest visited goes first."""


class Attached:
    """The adapter stays on the model; its handles are set from a snapshot of each step."""

    tolerance = 0.0

    def __init__(self, run: Run, device: torch.device) -> None:
        self._run = run
        folder = run.folder(run.final.step)
        self._config = read_adapter_config(folder)
        require_native(self._config, str(folder))
        base = load_base(run.base, device)
        self.probe_base = probe(base)
        biases = {n: p.detach().clone() for n, p in base.named_parameters() if n.endswith("bias")}
        self.model: PeftModel = load_adapter(base, folder)
        self.probe_final = probe(self.model)
        self._handles = find_handles(self.model, biases)
        self.model.requires_grad_(requires_grad=False)
        self._snapshots: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._snapshots[run.final.step] = self._snapshot()
        self._final_step = run.final.step

    def place(self, point: Point) -> None:
        if point.alpha > 1 and getattr(self._config, "coft", False):
            raise PointError(
                "constrained OFT (coft) clamps strengths above 1. Stay at or below alpha 1."
            )
        trained = self._trained(point.step or self._final_step)
        for handle in self._handles:
            if handle.identity is None:
                handle.live.copy_(trained[handle.name])
            else:
                strength = coefficient(handle.law, point.alpha)
                line(handle.identity, trained[handle.name], strength, out=handle.live)

    def distance(self, point: Point) -> float:
        trained = self._trained(point.step)
        squares = 0.0
        for handle in self._handles:
            if handle.identity is not None:
                way = trained[handle.name].float() - handle.identity.float()
                squares += (coefficient(handle.law, point.alpha) * float(way.norm())) ** 2
        return math.sqrt(squares)

    def _trained(self, step: int) -> dict[str, Tensor]:
        if step not in self._snapshots:
            self._require_same_method(self._run.folder(step))
            set_peft_model_state_dict(self.model, read_checkpoint(self._run, step))
            self._snapshots[step] = self._snapshot()
            while len(self._snapshots) > KEPT_STEPS:
                self._snapshots.popitem(last=False)
        self._snapshots.move_to_end(step)
        return self._snapshots[step]

    def _snapshot(self) -> dict[str, Tensor]:
        return {handle.name: handle.live.detach().clone() for handle in self._handles}

    def _require_same_method(self, folder: Path) -> None:
        ours, theirs = self._config.to_dict(), read_adapter_config(folder).to_dict()
        differing = [
            key for key in ours if ours[key] != theirs.get(key) and key != "inference_mode"
        ]
        if differing:
            raise PlacementError(
                f"{folder}: its {differing[0]} is {theirs.get(differing[0])!r}, the last "
                f"checkpoint's is {ours[differing[0]]!r}. A run's checkpoints share one adapter "
                "configuration."
            )
