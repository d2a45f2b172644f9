"""Compute capability-conditioned drift from second moments of a module's inputs.

The base reads the prompts once. A module's input rows are stored while there are fewer rows than
features, and summed as outer products from then on, so that memory is bounded by the module's size
whatever the number of prompts. The drift at each point is then a product with its update.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from backtrack.records.diagnosis import Drift

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-12
"""Added to both denominators, as in the paper."""


class Moments:
    """Second moments of a module's inputs, which give E||W h||^2 for any weight W."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._rows: list[Tensor] = []
        self._outer: Tensor | None = None
        self._squares = 0.0

    def add(self, rows: Tensor) -> None:
        """Add inputs, [rows, in]; they are summed in fp32."""
        wide = rows.float()
        self.num_rows += len(wide)
        self._squares += float(wide.double().square().sum())
        if self._outer is not None:
            self._outer.addmm_(wide.T, wide)
            return
        self._rows.append(wide.clone())
        if self.num_rows > wide.shape[1]:
            joined = torch.cat(self._rows)
            self._outer, self._rows = joined.T @ joined, []

    @property
    def mean_square(self) -> float:
        """E||h||^2."""
        return self._squares / max(self.num_rows, 1)

    @property
    def is_summed(self) -> bool:
        """Whether sums are stored, rather than rows."""
        return self._outer is not None

    def energy(self, weight: Tensor) -> float:
        """E||W h||^2 for a weight [out, in]."""
        if self._outer is not None:
            carried = ((weight @ self._outer) * weight).double().sum()
        else:
            carried = sum((r @ weight.T).double().square().sum() for r in self._rows)  # type: ignore[assignment]
        return max(float(carried), 0.0) / max(self.num_rows, 1)


def drift(moments: Moments, base: Tensor, update: Tensor) -> Drift:
    """The three norms of an update's drift on some prompts.

    Args:
        moments: Moments of the module's inputs in the base.
        base: W0, [out, in], fp32.
        update: dW, [out, in], fp32.
    """
    absolute = moments.energy(update)
    norm = float(update.double().square().sum())
    return Drift(
        absolute=absolute,
        relative=absolute / (moments.energy(base) + EPSILON),
        update_normed=absolute / ((norm + EPSILON) * (moments.mean_square + EPSILON)),
        num_tokens=moments.num_rows,
    )
