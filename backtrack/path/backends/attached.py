"""The backend that keeps the adapter on the model and sets its handles; no weight is copied.

Promised: both ends are exact in any type, since a handle at its end is copied, not computed; a
layer whose identity is exact to rounding only (Householder vectors) is disabled at alpha 0.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING

from peft import set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer

from backtrack.errors import PointError
from backtrack.path.adapters.handles import find_handles, plain_name
from backtrack.path.adapters.opening import open_adapter
from backtrack.path.adapters.strength import (
    delta_strengths,
    displacement,
    generator_norms,
    generator_strengths,
)
from backtrack.path.adapters.tuners import clips_generator, tuner_of
from backtrack.path.curves import coefficient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch
    from torch import Tensor

    from backtrack.path.adapters.handles import Handle
    from backtrack.path.backends.end_storage import EndStorage
    from backtrack.path.curves import Law
    from backtrack.path.profiles import Strength
    from backtrack.point import Point
    from backtrack.run.directory import Run

logger = logging.getLogger(__name__)

CACHED_STEPS = 4
"""Checkpoints whose trained handles stay in memory; the least recently used is dropped first."""

MAX_CAYLEY_NORM = 0.5
"""Spectral norm of a generator above which a truncated Cayley series is no longer a rotation: with
five terms, the singular values are off by the fourth power of the norm."""


class Attached:
    """Sets the adapter's handles from a snapshot of each step; see `Backend` for attributes.

    Attributes:
        handles: The tensors that move with alpha, in the model's order.
        opened: The adapter on its base.
    """

    end_storage: EndStorage | None = None

    def __init__(self, run: Run, device: torch.device) -> None:
        self.opened = open_adapter(run, device)
        self._config = self.opened.config
        self.model = self.opened.model
        tuner = tuner_of(self._config)
        self.handles = find_handles(self.model, self.opened.originals)
        self.law: Law = "root" if tuner.is_rotation else "linear"
        self.modules = tuple(dict.fromkeys(m for h in self.handles for m in h.modules))
        self._disabled_at_base = self._tuner_layers() if "turn" in tuner.rules.values() else {}
        self._final_step = run.final.step
        self._snapshots: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._snapshots[self._final_step] = self._snapshot()
        self._warned: set[int] = set()
        self.vocabulary, self.is_resized = self.opened.vocabulary, self.opened.is_resized
        self.probe_base = self.opened.probe_base
        self.probe_final = self.opened.probe_final
        self.tolerance = self.opened.tolerance
        self.model.requires_grad_(requires_grad=False)

    @property
    def moving(self) -> Mapping[str, Tensor]:
        return {handle.name: handle.live for handle in self.handles}

    def prepare(self, point: Point, multipliers: Mapping[str, float]) -> Callable[[], None]:
        step = point.step or self._final_step
        trained = self._trained(step)
        alphas = [point.alpha * _multiplier(h, multipliers, point) for h in self.handles]
        strongest = point.alpha * max(multipliers.values(), default=1.0)
        if strongest > 1:
            self._check_beyond_one(step, strongest)

        def write() -> None:
            for handle, alpha in zip(self.handles, alphas, strict=True):
                handle.write(trained[handle.name], alpha)
            for module, layer in self._disabled_at_base.items():
                layer.enable_adapters(point.alpha * multipliers.get(module, 1.0) != 0)

        return write

    def distance(self, point: Point, multipliers: Mapping[str, float]) -> float:
        trained = self._trained(point.step)
        squares = 0.0
        for handle in self.handles:
            if not handle.is_fixed:
                alpha = point.alpha * _multiplier(handle, multipliers, point)
                moved = displacement(handle, trained[handle.name])
                squares += (coefficient(handle.law, alpha) * float(moved.norm())) ** 2
        return math.sqrt(squares)

    def strengths(self, step: int) -> dict[str, Strength]:
        """Strength of each module at alpha 1. See `profiles`."""
        trained = self._trained(step)
        if self.law == "root":
            return generator_strengths(self.handles, trained)
        with self._restored():
            for handle in self.handles:
                handle.write(trained[handle.name], 1.0)
            return delta_strengths(self.model, self.originals, self.base_value)

    def base_value(self, name: str) -> Tensor:
        """The base's own tensor of this name in the plain model."""
        return self.opened.base_value(name)

    @property
    def originals(self) -> Mapping[str, Tensor]:
        """The base's own values of parameters that the adapter overwrote, by name."""
        return self.opened.originals

    def _trained(self, step: int) -> dict[str, Tensor]:
        if step not in self._snapshots:
            tensors = self.opened.read(step)
            with self._restored():
                set_peft_model_state_dict(self.model, tensors)
                self._snapshots[step] = self._snapshot()
            while len(self._snapshots) > CACHED_STEPS:
                self._snapshots.popitem(last=False)
        self._snapshots.move_to_end(step)
        return self._snapshots[step]

    def _snapshot(self) -> dict[str, Tensor]:
        return {handle.name: handle.live.detach().clone() for handle in self.handles}

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Restore the handles' live values after the context, also after an error."""
        values = self._snapshot()
        try:
            yield
        finally:
            for handle in self.handles:
                handle.live.copy_(values[handle.name])

    def _tuner_layers(self) -> dict[str, BaseTunerLayer]:
        return {
            plain_name(path): module
            for path, module in self.model.named_modules()
            if isinstance(module, BaseTunerLayer)
        }

    def _check_beyond_one(self, step: int, alpha: float) -> None:
        """Refuse a strength that the method clips; warn once a step of one beyond rotations."""
        if clips_generator(self._config):
            raise PointError(
                f"{self._config.peft_type} with a bound on its generator (coft, "
                "cayley_neumann_eps) clips strengths above 1. Use alpha 1 at most: "
                "`search: {max_alpha: 1}` in the recipe."
            )
        if step in self._warned or not getattr(self._config, "use_cayley_neumann", False):
            return
        trained = self._snapshots[step]
        norm = max(generator_norms(self.model, self.handles, trained), default=0.0)
        if math.sqrt(alpha) * norm > MAX_CAYLEY_NORM:
            self._warned.add(step)
            logger.warning(
                "step %d at strength %g: a generator has norm %.2g, above %g, so the Cayley "
                "series of this adapter is no longer a rotation (singular values off by up to "
                "%.2g). Points this far shrink or stretch weights.",
                step, alpha, math.sqrt(alpha) * norm, MAX_CAYLEY_NORM, (alpha * norm**2) ** 2,
            )  # fmt: skip


def _multiplier(handle: Handle, multipliers: Mapping[str, float], point: Point) -> float:
    """The multiplier of alpha for a handle.

    Raises:
        PointError: The handle is shared by modules that have different multipliers.
    """
    values = {multipliers.get(module, 1.0) for module in handle.modules}
    if len(values) > 1:
        raise PointError(
            f"profile {point.profile}: {handle.name} is shared by {len(handle.modules)} modules, "
            "which this profile would move differently. Use the uniform profile."
        )
    return values.pop()
