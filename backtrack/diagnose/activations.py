"""Compare the geometry of a module's outputs in the base, X0, with that at points, X1.

Rows are tokens of the same prompts. Only sums of outer products are stored: matrices of
[features, features], two for the base and four for each point. While there are fewer rows than
features, the rows themselves are stored, and then expressed in an orthonormal basis of their span,
which changes no metric.

Sums are of X0 and of the difference D = X1 - X0 rather than of X1, and every metric is written in
these, so that a small change is not the difference of two large numbers: Procrustes is
||X0 (R - I) + D R||, Gram ||Z0 D^T + D Z0^T + D D^T||. Sums are in fp64 up to `MAX_FP64_FEATURES`
features, in fp32 above.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from backtrack.records.diagnosis import ActivationGeometry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

DIMENSION = 16
"""Dimension of the principal subspaces that are compared."""
RELEASE_DIMENSIONS = (32, 64)
"""Those of PEFT-Arena's release."""
MAX_FP64_FEATURES = 1024
TINY = 1e-30


class _Sums(NamedTuple):
    """X0^T X0, X0^T D and D^T D, each [features, features]."""

    base: Tensor
    cross: Tensor
    change: Tensor


class _PointSums:
    """Sums of the outputs at one point, beside the base's."""

    def __init__(self) -> None:
        self.cross: Tensor | None = None
        self.change: Tensor | None = None
        self.unit_cross: Tensor | None = None
        self.unit_change: Tensor | None = None
        self.total: Tensor | None = None
        self.cosine = 0.0
        self.norm = 0.0
        self.log_norm = 0.0

    def add(self, start: Tensor, unit: Tensor, end: Tensor) -> None:
        difference = end - start
        end_norms = torch.linalg.vector_norm(end, dim=1, keepdim=True)
        start_norms = torch.linalg.vector_norm(start, dim=1, keepdim=True)
        unit_difference = end / end_norms.clamp(min=TINY) - unit
        self.cross = _summed(self.cross, start, difference)
        self.change = _summed(self.change, difference, difference)
        self.unit_cross = _summed(self.unit_cross, unit, unit_difference)
        self.unit_change = _summed(self.unit_change, unit_difference, unit_difference)
        total = difference.sum(dim=0)
        self.total = total if self.total is None else self.total + total
        # For unit rows, 1 - cosine is half the squared distance.
        self.cosine += float(unit_difference.double().square().sum()) / 2
        relative = (end_norms - start_norms).abs() / start_norms.clamp(min=TINY)
        self.norm += float(relative.double().sum())
        ratio = end_norms.clamp(min=TINY) / start_norms.clamp(min=TINY)
        self.log_norm += float(ratio.double().log().abs().sum())


class Pairs:
    """One module's outputs at several points, paired with the base's."""

    def __init__(self, num_points: int) -> None:
        self.num_rows = 0
        self._base: Tensor | None = None
        self._unit_base: Tensor | None = None
        self._total: Tensor | None = None
        self._points = [_PointSums() for _ in range(num_points)]
        self._rows: list[tuple[Tensor, ...]] | None = []

    def add(self, start: Tensor, ends: Sequence[Tensor]) -> None:
        """Add outputs of the same tokens.

        Args:
            start: X0, [rows, features].
            ends: X1 at each point, in the order of the points, [rows, features].
        """
        width = start.shape[1]
        dtype = torch.float64 if width <= MAX_FP64_FEATURES else torch.float32
        rows = tuple(t.detach().to(dtype, copy=True) for t in (start, *ends))
        self.num_rows += len(start)
        if self._rows is None:
            self._add(rows)
            return
        self._rows.append(rows)
        # Two matrices of n rows span at most 2n dimensions.
        if 2 * self.num_rows >= width:
            stored, self._rows = self._rows, None
            for stored_rows in stored:
                self._add(stored_rows)

    def _add(self, rows: Sequence[Tensor]) -> None:
        start = rows[0]
        norms = torch.linalg.vector_norm(start, dim=1, keepdim=True)
        unit = start / norms.clamp(min=TINY)
        self._base = _summed(self._base, start, start)
        self._unit_base = _summed(self._unit_base, unit, unit)
        total = start.sum(dim=0)
        self._total = total if self._total is None else self._total + total
        for point, end in zip(self._points, rows[1:], strict=True):
            point.add(start, unit, end)

    def geometry(self) -> list[ActivationGeometry]:
        """The metrics at each point."""
        if self._rows is not None:
            return self._of_rows(self._rows)
        return [self._of_sums(point) for point in self._points]

    def _of_rows(self, stored: Sequence[tuple[Tensor, ...]]) -> list[ActivationGeometry]:
        """The metrics at each point, in a basis of the span of X0 and X1."""
        geometry = []
        for i in range(len(self._points)):
            start = torch.cat([rows[0] for rows in stored])
            end = torch.cat([rows[i + 1] for rows in stored])
            basis = torch.linalg.qr(torch.cat([start, end]).T.double()).Q
            pairs = Pairs(1)
            pairs.num_rows, pairs._rows = self.num_rows, None
            pairs._add([start.double() @ basis, end.double() @ basis])
            geometry += pairs.geometry()
        return geometry

    def _of_sums(self, point: _PointSums) -> ActivationGeometry:
        raw = _Sums(*map(_matrix, (self._base, point.cross, point.change)))
        unit = _Sums(*map(_matrix, (self._unit_base, point.unit_cross, point.unit_change)))
        centred = self._centred(raw, _matrix(point.total))
        distances = _subspace_distances(centred, self.num_rows)
        return ActivationGeometry(
            procrustes=_procrustes(raw),
            gram=_gram(unit),
            cka=_cka(centred),
            cosine_drift=point.cosine / self.num_rows,
            norm_drift=point.norm / self.num_rows,
            subspace_distance=distances[DIMENSION],
            dimension=_dimension(DIMENSION, centred, self.num_rows),
            num_tokens=self.num_rows,
            procrustes_centred=_procrustes(centred),
            log_norm_drift=point.log_norm / self.num_rows,
            subspace_distance_32=distances[32],
            subspace_distance_64=distances[64],
        )

    def _centred(self, raw: _Sums, total: Tensor) -> _Sums:
        start, count = _matrix(self._total), self.num_rows
        return _Sums(
            raw.base - torch.outer(start, start) / count,
            raw.cross - torch.outer(start, total) / count,
            raw.change - torch.outer(total, total) / count,
        )


def _summed(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Add outer products of rows to a total, in place if there is one."""
    return left.T @ right if total is None else total.addmm_(left.T, right)


def _matrix(value: Tensor | None) -> Tensor:
    assert value is not None, "nothing was added"
    return value


def _procrustes(sums: _Sums) -> float:
    """Residual of the best orthogonal map from X1 to X0, divided by ||X0||_F."""
    left, _, right = torch.linalg.svd(sums.base + sums.cross.T)
    rotation = left @ right
    turn = rotation - torch.eye(len(rotation), dtype=rotation.dtype, device=rotation.device)
    squares = (
        (turn * (sums.base @ turn)).sum()
        + 2 * (turn * (sums.cross @ rotation)).sum()
        + sums.change.trace()
    )
    return _root(float(squares) / max(float(sums.base.trace()), TINY))


def _gram(sums: _Sums) -> float:
    """||Z1 Z1^T - Z0 Z0^T||_F / ||Z0 Z0^T||_F."""
    base, cross, change = sums
    squares = (
        2 * (base * change).sum()
        + 2 * (cross * cross.T).sum()
        + change.square().sum()
        + 4 * (cross * change).sum()
    )
    return _root(float(squares) / max(float(base.square().sum()), TINY))


def _cka(sums: _Sums) -> float:
    """Linear CKA of centred rows."""
    product = sums.base + sums.cross
    after = product + sums.cross.T + sums.change
    scale = torch.linalg.matrix_norm(sums.base) * torch.linalg.matrix_norm(after)
    return float(product.square().sum() / scale.clamp(min=TINY))


def _subspace_distances(sums: _Sums, num_rows: int) -> dict[int, float]:
    """Distance between the principal subspaces, by the largest dimension each may have."""
    after = sums.base + sums.cross + sums.cross.T + sums.change
    directions = [
        torch.linalg.eigh((m + m.T) / 2).eigenvectors.flip(1) for m in (sums.base, after)
    ]
    distances = {}
    for largest in (DIMENSION, *RELEASE_DIMENSIONS):
        dimension = _dimension(largest, sums, num_rows)
        base_span, point_span = (found[:, :dimension] for found in directions)
        outside = point_span - base_span @ (base_span.T @ point_span)
        distances[largest] = float(torch.linalg.matrix_norm(outside)) / math.sqrt(dimension)
    return distances


def _dimension(largest: int, sums: _Sums, num_rows: int) -> int:
    return max(1, min(largest, len(sums.base), num_rows - 1))


def _root(square: float) -> float:
    return math.sqrt(max(square, 0.0))
