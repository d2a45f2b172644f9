"""Decide after which optimizer steps a checkpoint is due.

Three cadences: every n steps, evenly in log steps, or by the distance the weights have moved. The
last step is always saved, whatever the cadence; the first also is, except with `every_steps`. What
is due depends only on the weights already saved, so a resumed training saves the same steps as an
uninterrupted one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from typing_extensions import override

from backtrack.errors import UsageError
from backtrack.recipe import TrajectorySection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backtrack.run.thinning import Spacing

_MAX_SAMPLED_VALUES = 1 << 20


class Cadence:
    """Decides after each optimizer step whether to save it; abstract.

    Attributes:
        distance: Sum of the distances between saved checkpoints; None if it is not measured.
    """

    distance: float | None = None

    def is_due(self, step: int, live: Mapping[str, Tensor]) -> bool:
        raise NotImplementedError

    def record_save(self, live: Mapping[str, Tensor]) -> None:
        """Note that these weights were saved."""


class EverySteps(Cadence):
    """Every n optimizer steps."""

    def __init__(self, every_steps: int) -> None:
        self._every_steps = every_steps

    @override
    def is_due(self, step: int, live: Mapping[str, Tensor]) -> bool:
        return step % self._every_steps == 0


class LogSteps(Cadence):
    """A number of checkpoints evenly spaced in log steps; early ones may round to one step."""

    def __init__(self, num_checkpoints: int, last_step: int) -> None:
        self._steps = log_spaced(num_checkpoints, last_step)

    @override
    def is_due(self, step: int, live: Mapping[str, Tensor]) -> bool:
        return step in self._steps


class ByDistance(Cadence):
    """Whenever the weights have moved by a fraction of their norm since the last checkpoint.

    Distances are L2 norms over a sample of at most about a million values, taken at an even
    stride over all trained tensors in the dtype they are stored in.
    """

    def __init__(
        self,
        fraction: float,
        saved: Mapping[str, Tensor],
        distance: float,
        dtype: torch.dtype | None,
    ) -> None:
        """Start from the weights saved last.

        Args:
            fraction: Distance between checkpoints, as a fraction of the saved weights' norm.
            saved: The weights saved last, or those before training.
            distance: Sum of the distances up to them.
            dtype: Dtype they are stored in; None for the live dtype.
        """
        self._fraction = fraction
        self._dtype = dtype
        self._stride = max(1, sum(t.numel() for t in saved.values()) // _MAX_SAMPLED_VALUES)
        self._saved = self._sample(saved)
        self.distance: float = distance

    @override
    def is_due(self, step: int, live: Mapping[str, Tensor]) -> bool:
        return step == 1 or self._distance_to(self._sample(live)) >= self._fraction

    @override
    def record_save(self, live: Mapping[str, Tensor]) -> None:
        sample = self._sample(live)
        self.distance += self._distance_to(sample)
        self._saved = sample

    def _distance_to(self, sample: Tensor) -> float:
        return float((sample - self._saved).norm() / self._saved.norm())

    @torch.no_grad()
    def _sample(self, tensors: Mapping[str, Tensor]) -> Tensor:
        parts = (tensors[name].detach().reshape(-1)[:: self._stride] for name in sorted(tensors))
        return torch.cat([part.to(self._dtype or part.dtype).float().cpu() for part in parts])


def log_spaced(num_checkpoints: int, last_step: int) -> frozenset[int]:
    """Return distinct steps from 1 to the last, evenly spaced in their logarithm."""
    log_last = math.log(max(last_step, 1))
    shares = (i / max(num_checkpoints - 1, 1) for i in range(num_checkpoints))
    return frozenset({round(math.exp(share * log_last)) for share in shares} | {last_step})


def spacing_of(section: TrajectorySection) -> Spacing:
    """Return the axis the cadence is even along: `steps`, `log` or `distance`."""
    if section.every_distance is not None:
        return "distance"
    return "steps" if section.log_checkpoints is None else "log"


def section_of(values: dict[str, Any], whose: str) -> TrajectorySection:
    """Make the section of a recipe that keywords describe.

    Args:
        values: Keys of `trajectory`.
        whose: Who was given them, for messages.

    Raises:
        UsageError: A key is unknown, or its value out of range.
    """
    try:
        return TrajectorySection.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "cadence"
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{whose}: {key}: {reason}, got {first['input']!r}.") from error
