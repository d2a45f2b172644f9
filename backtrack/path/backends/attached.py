"""Stand at points with the adapter on the model: its handles are set, no weight is copied.

Promised: both ends are exact in any type, since a handle at its end is copied, not computed; a
layer whose identity is exact to rounding only (Householder vectors) is switched off at 0.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from peft import set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer

from backtrack.errors import PlacementError, PointError
from backtrack.path.adapters.handles import find_handles, plain_name
from backtrack.path.adapters.opening import open_adapter
from backtrack.path.adapters.strength import (
    delta_strengths,
    generator_norms,
    generator_strengths,
    way,
)
from backtrack.path.adapters.tuners import is_clamped, tuner_of, why_dense
from backtrack.path.curves import coefficient

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from backtrack.path.adapters.handles import Handle
    from backtrack.path.backends.stored_ends import Keep
    from backtrack.path.curves import Law
    from backtrack.path.profiles import Strength
    from backtrack.point import Point
    from backtrack.run.directory import Run

logger = logging.getLogger(__name__)

KEPT_STEPS = 4
"""Checkpoints whose tensors are kept at hand; the oldest visited goes first."""

ORTHOGONAL_UP_TO = 0.5
"""Norm of a generator past which a truncated Cayley series is no rotation: the singular values of
the five-term one are off by the norm's fourth power."""


class Attached:
    """The adapter stays on the model; its handles are set from a snapshot of each step."""

    keep: Keep | None = None

    def __init__(self, run: Run, device: torch.device) -> None:
        self._opened = open_adapter(run, device)
        self._config = self._opened.config
        self.model = self._opened.model
        tuner = tuner_of(self._config)
        if not tuner.has_native:
            raise PlacementError(
                f"{run.path}: {why_dense(self._config)}, so it has no native curve. "
                "Stand on the dense line: `placement: {form: merged, curve: line}` in the recipe."
            )
        self.handles = find_handles(self.model, self._opened.originals)
        self.law: Law = "root" if tuner.is_rotation else "linear"
        self.modules = tuple(dict.fromkeys(m for h in self.handles for m in h.modules))
        self._switched = self._find_switched() if "turn" in tuner.rules.values() else {}
        self._final_step = run.final.step
        self._snapshots: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._snapshots[self._final_step] = self._snapshot()
        self._warned: set[int] = set()
        self.vocabulary = self._opened.vocabulary
        self.probe_base = self._opened.probe_base
        self.probe_final = self._opened.probe_final
        self.tolerance = self._opened.tolerance
        self.model.requires_grad_(requires_grad=False)

    def place(self, point: Point, multipliers: Mapping[str, float]) -> None:
        step = point.step or self._final_step
        trained = self._trained(step)
        for handle in self.handles:
            handle.place(trained[handle.name], point.alpha * _one(handle, multipliers, point))
        for module, layer in self._switched.items():
            layer.enable_adapters(point.alpha * multipliers.get(module, 1.0) != 0)
        strongest = point.alpha * max(multipliers.values(), default=1.0)
        if strongest > 1:
            self._require_sound_past_one(step, strongest)

    def distance(self, point: Point, multipliers: Mapping[str, float]) -> float:
        trained = self._trained(point.step)
        squares = 0.0
        for handle in self.handles:
            if not handle.is_still:
                alpha = point.alpha * _one(handle, multipliers, point)
                moved = way(handle, trained[handle.name])
                squares += (coefficient(handle.law, alpha) * float(moved.norm())) ** 2
        return math.sqrt(squares)

    def strengths(self, step: int) -> dict[str, Strength]:
        """Strength of each module at alpha 1, where the adapter is left; see `profiles`."""
        trained = self._trained(step)
        if self.law == "root":
            return generator_strengths(self.handles, trained)
        for handle in self.handles:
            handle.place(trained[handle.name], 1.0)
        return delta_strengths(self.model, self.originals, self.base_value)

    def base_value(self, name: str) -> Tensor:
        """The base's own tensor of this name in the plain model."""
        return self._opened.base_value(name)

    @property
    def originals(self) -> Mapping[str, Tensor]:
        """The base's own tensors that the adapter overwrote."""
        return self._opened.originals

    def _trained(self, step: int) -> dict[str, Tensor]:
        if step not in self._snapshots:
            set_peft_model_state_dict(self.model, self._opened.read(step))
            self._snapshots[step] = self._snapshot()
            while len(self._snapshots) > KEPT_STEPS:
                self._snapshots.popitem(last=False)
        self._snapshots.move_to_end(step)
        return self._snapshots[step]

    def _snapshot(self) -> dict[str, Tensor]:
        return {handle.name: handle.live.detach().clone() for handle in self.handles}

    def _find_switched(self) -> dict[str, BaseTunerLayer]:
        return {
            plain_name(path): module
            for path, module in self.model.named_modules()
            if isinstance(module, BaseTunerLayer)
        }

    def _require_sound_past_one(self, step: int, alpha: float) -> None:
        """Refuse a strength that the method clips; warn of one that leaves the rotations."""
        if is_clamped(self._config):
            raise PointError(
                f"{self._config.peft_type} with a bound on its generator (coft, "
                "cayley_neumann_eps) clips strengths above 1. Stay at or below alpha 1: "
                "`search: {max_alpha: 1}` in the recipe."
            )
        if step in self._warned or not getattr(self._config, "use_cayley_neumann", False):
            return
        trained = self._snapshots[step]
        norm = max(generator_norms(self.model, self.handles, trained), default=0.0)
        if math.sqrt(alpha) * norm > ORTHOGONAL_UP_TO:
            self._warned.add(step)
            logger.warning(
                "step %d at strength %g: a generator of norm %.2g is past %g, where the Cayley "
                "series of this adapter is no rotation any more (singular values off by up to "
                "%.2g). Points this far shrink or stretch weights.",
                step, alpha, math.sqrt(alpha) * norm, ORTHOGONAL_UP_TO, (alpha * norm**2) ** 2,
            )  # fmt: skip


def _one(handle: Handle, multipliers: Mapping[str, float], point: Point) -> float:
    """The multiplier of a handle.

    Raises:
        PointError: It is part of several modules that have different ones.
    """
    found = {multipliers.get(module, 1.0) for module in handle.modules}
    if len(found) > 1:
        raise PointError(
            f"profile {point.profile}: {handle.name} is shared by {len(handle.modules)} modules, "
            "which this profile would move differently. Use the uniform profile."
        )
    return found.pop()
