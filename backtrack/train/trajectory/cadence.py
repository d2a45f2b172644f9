"""When a checkpoint is due: every so many steps, evenly in log steps, or by distance moved.

The last step is always due, whatever the cadence; so is the first, except with plain steps. What
is due depends on the weights that were kept and on nothing else, so a resumed training keeps what
an uninterrupted one keeps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backtrack.recipe import TrajectorySection
    from backtrack.run.thinning import Spacing

_SAMPLE_VALUES = 1 << 20


class Cadence(Protocol):
    """Says after each optimizer step whether it is kept."""

    def is_due(self, step: int, live: Mapping[str, Tensor]) -> bool: ...


class EverySteps:
    """Every so many optimizer steps."""

    def __init__(self, every_steps: int) -> None:
        self._every_steps = every_steps

    def is_due(self, step: int, live: Mapping[str, Tensor]) -> bool:  # noqa: ARG002
        return step % self._every_steps == 0


class LogSteps:
    """So many checkpoints, evenly spaced in log steps; early ones fall together on whole steps."""

    def __init__(self, num_checkpoints: int, last_step: int) -> None:
        self._steps = log_spaced(num_checkpoints, last_step)

    def is_due(self, step: int, live: Mapping[str, Tensor]) -> bool:  # noqa: ARG002
        return step in self._steps


class ByDistance:
    """Each time the weights have moved by a share of their norm since the last checkpoint.

    Distances are L2 and taken over a million values at most, evenly strided over all that is
    trained, in the type they are kept in.
    """

    def __init__(
        self, share: float, kept: Mapping[str, Tensor], travelled: float, dtype: torch.dtype | None
    ) -> None:
        """Begin at the weights kept last.

        Args:
            share: How far, in norms of the weights kept last.
            kept: Those weights, or those at the start.
            travelled: Sum of the distances up to them.
            dtype: Type they are kept in; none is the live one.
        """
        self._share = share
        self._dtype = dtype
        self._stride = max(1, sum(t.numel() for t in kept.values()) // _SAMPLE_VALUES)
        self._kept = self._sample(kept)
        self.travelled = travelled

    def is_due(self, step: int, live: Mapping[str, Tensor]) -> bool:
        return step == 1 or self._moved(self._sample(live)) >= self._share

    def keep(self, live: Mapping[str, Tensor]) -> None:
        """Take the weights as the last that were kept."""
        sample = self._sample(live)
        self.travelled += self._moved(sample)
        self._kept = sample

    def _moved(self, sample: Tensor) -> float:
        return float((sample - self._kept).norm() / self._kept.norm())

    @torch.no_grad()
    def _sample(self, tensors: Mapping[str, Tensor]) -> Tensor:
        parts = (tensors[name].detach().reshape(-1)[:: self._stride] for name in sorted(tensors))
        return torch.cat([part.to(self._dtype or part.dtype).float().cpu() for part in parts])


def log_spaced(num_checkpoints: int, last_step: int) -> frozenset[int]:
    """Steps 1 to the last, evenly spaced in their logarithm, each once."""
    most = math.log(max(last_step, 1))
    shares = (i / max(num_checkpoints - 1, 1) for i in range(num_checkpoints))
    return frozenset({round(math.exp(share * most)) for share in shares} | {last_step})


def axis_of(section: TrajectorySection) -> Spacing:
    """Along what the cadence is even: `steps`, `log` or `distance`."""
    if section.every_distance is not None:
        return "distance"
    return "steps" if section.log_checkpoints is None else "log"
