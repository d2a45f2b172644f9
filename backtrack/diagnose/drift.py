"""Who feels an update: capability-conditioned drift, from second moments of a module's inputs.

The base reads the prompts once; a module keeps its input rows while they are fewer than their
features, and from then on the sum of their outer products, so that memory is bounded by the
module's own size however many prompts there are, and every point of a path is a product with its
update.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from backtrack.records.diagnosis import Drift

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = 1e-12
"""The paper's, in both denominators."""


class Moments:
    """Sums over rows of a module's inputs, for the mean energy of any linear map of them."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._rows: list[Tensor] = []
        self._outer: Tensor | None = None
        self._squares = 0.0

    def add(self, rows: Tensor) -> None:
        """Take in inputs, [rows, in]; summed in fp32."""
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
        """Rows are gone, sums are kept."""
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
        moments: Of the base's inputs of the module.
        base: W0, [out, in], fp32.
        update: dW, likewise.
    """
    absolute = moments.energy(update)
    norm = float(update.double().square().sum())
    return Drift(
        absolute=absolute,
        relative=absolute / (moments.energy(base) + EPSILON),
        update_normed=absolute / ((norm + EPSILON) * (moments.mean_square + EPSILON)),
        num_tokens=moments.num_rows,
    )
