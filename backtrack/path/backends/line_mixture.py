"""Move named tensors of a live model along the line between two stored ends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from backtrack.errors import PlacementError
from backtrack.path.adapters.strength import is_weight, relative_strength
from backtrack.path.backends.end_storage import move_end, store_end
from backtrack.path.curves import line
from backtrack.path.profiles import summed
from backtrack.records.places import ANOTHER_BASE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from backtrack.path.backends.end_storage import EndStorage
    from backtrack.path.profiles import Strength
    from backtrack.point import Point

    Tensors = Mapping[str, Tensor]


class LineMixture:
    """Named tensors of a live model on the line between two stored ends.

    Attributes:
        live: The tensors, by name.

    Moving to a point reads both ends once and writes the live tensors once.
    """

    def __init__(
        self,
        live: Tensors,
        storage: EndStorage,
        read: Callable[[int], dict[str, Tensor]],
    ) -> None:
        """Store the values that `live` holds now as the base end.

        Args:
            live: Tensors of the live model, by name.
            storage: Where both ends are stored.
            read: Returns the trained tensors of a step, by the same names.
        """
        self.live = live
        self._storage: EndStorage = storage
        self._read = read
        self._base = store_end(live, storage, live)
        self._trained: dict[str, Tensor] = {}
        self._step = 0
        self._norms: dict[str, float] = {}

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(module_of(name) for name in self.live))

    def load(self, step: int, trained: dict[str, Tensor] | None = None) -> None:
        """Make a checkpoint the trained end.

        Args:
            step: The checkpoint; nothing is done for the base (0) or the step already loaded.
            trained: Its tensors, if the caller has read them; the dict is empty afterwards.

        Raises:
            PlacementError: Shapes differ from the base's.
        """
        if step not in {0, self._step}:
            # Free the old end before reading the new one; if that fails, it is read again.
            self._trained, self._norms, self._step = {}, {}, 0
            trained = self._read(step) if trained is None else trained
            _require_shapes(trained, self._base, step)
            self._trained = move_end(trained, self._storage, self.live)
            self._step = step

    def write(self, point: Point, multipliers: Mapping[str, float]) -> None:
        """Set the live tensors to a point of the base or of the loaded checkpoint."""
        if point.is_base:
            for name, base in self._base.items():
                self.live[name].copy_(base)
            return
        for name, trained in self._trained.items():
            alpha = point.alpha * multipliers.get(module_of(name), 1.0)
            line(self._base[name], trained, alpha, out=self.live[name])

    def distance(self, point: Point, multipliers: Mapping[str, float]) -> float:
        self.load(point.step)
        if not self._norms:
            moving = [n for n, value in self._trained.items() if value.is_floating_point()]
            self._norms = {n: math.sqrt(self._strength(n).moved) for n in moving}
        scaled = (n * multipliers.get(module_of(name), 1.0) for name, n in self._norms.items())
        return point.alpha * math.hypot(*scaled)

    def strengths(self, step: int) -> dict[str, Strength]:
        """Strength of each module's weight at alpha 1; see `profiles`."""
        self.load(step)
        weights = [name for name, value in self._trained.items() if is_weight(name, value)]
        return summed((module_of(name), self._strength(name)) for name in weights)

    def _strength(self, name: str) -> Strength:
        device = self.live[name].device
        base, trained = (tensors[name].to(device) for tensors in (self._base, self._trained))
        return relative_strength(trained, base)


def module_of(name: str) -> str:
    """Path of the module that a tensor belongs to."""
    return name.rpartition(".")[0]


def _require_shapes(trained: Tensors, base: Tensors, step: int) -> None:
    wrong = [name for name in base if base[name].shape != trained[name].shape]
    if wrong:
        raise PlacementError(
            f"step {step}: {len(wrong)} tensors do not fit the base. The first is {wrong[0]!r}, "
            f"of shape {tuple(trained[wrong[0]].shape)} in the checkpoint and "
            f"{tuple(base[wrong[0]].shape)} in the base. Leave the step out. "
            f"{ANOTHER_BASE}"
        )
