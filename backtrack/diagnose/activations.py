"""What a representation keeps: a module's outputs in the base, X0, against those at points, X1.

Rows are tokens of the same prompts. All that is kept are sums of outer products, six matrices of
features by features a point; where there are fewer rows than features, the rows themselves, which
are then expressed in an orthonormal basis of their own span (no metric here sees the difference).

Sums are taken of X0 and of the difference D = X1 - X0 rather than of X1, and every metric is
written in them, so that a small change is not the difference of two large numbers: Procrustes is
||X0 (R - I) + D R||, Gram ||Z0 D^T + D Z0^T + D D^T||. Sums are in fp64 up to `WIDE_UP_TO`
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
"""Of the principal subspaces that are compared."""
WIDE_UP_TO = 1024
TINY = 1e-30


class _Sums(NamedTuple):
    """X0^T X0, X0^T D and D^T D of rows, [features, features]."""

    base: Tensor
    mixed: Tensor
    moved: Tensor


class _Moved:
    """What is summed of one point."""

    def __init__(self) -> None:
        self.mixed: Tensor | None = None
        self.moved: Tensor | None = None
        self.unit_mixed: Tensor | None = None
        self.unit_moved: Tensor | None = None
        self.total: Tensor | None = None
        self.cosine = 0.0
        self.norm = 0.0

    def add(self, start: Tensor, unit: Tensor, end: Tensor) -> None:
        difference = end - start
        lengths = torch.linalg.vector_norm(end, dim=1, keepdim=True)
        before = torch.linalg.vector_norm(start, dim=1, keepdim=True)
        turned = end / lengths.clamp(min=TINY) - unit
        self.mixed = _summed(self.mixed, start, difference)
        self.moved = _summed(self.moved, difference, difference)
        self.unit_mixed = _summed(self.unit_mixed, unit, turned)
        self.unit_moved = _summed(self.unit_moved, turned, turned)
        moved = difference.sum(dim=0)
        self.total = moved if self.total is None else self.total + moved
        # Of unit rows, 1 - cosine is half the squared distance.
        self.cosine += float(turned.double().square().sum()) / 2
        self.norm += float(((lengths - before).abs() / before.clamp(min=TINY)).double().sum())


class Pairs:
    """One module's outputs at several points, beside the base's."""

    def __init__(self, num_points: int) -> None:
        self.num_rows = 0
        self._base: Tensor | None = None
        self._unit_base: Tensor | None = None
        self._total: Tensor | None = None
        self._points = [_Moved() for _ in range(num_points)]
        self._rows: list[tuple[Tensor, ...]] | None = []

    def add(self, start: Tensor, ends: Sequence[Tensor]) -> None:
        """Take in outputs of the same tokens.

        Args:
            start: X0, [rows, features].
            ends: X1 at each point, in their order, likewise.
        """
        width = start.shape[1]
        dtype = torch.float64 if width <= WIDE_UP_TO else torch.float32
        rows = tuple(t.detach().to(dtype, copy=True) for t in (start, *ends))
        self.num_rows += len(start)
        if self._rows is None:
            self._add(rows)
            return
        self._rows.append(rows)
        # Two tall matrices span at most twice their rows.
        if 2 * self.num_rows >= width:
            kept, self._rows = self._rows, None
            for each in kept:
                self._add(each)

    def _add(self, rows: Sequence[Tensor]) -> None:
        start = rows[0]
        before = torch.linalg.vector_norm(start, dim=1, keepdim=True)
        unit = start / before.clamp(min=TINY)
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

    def _of_rows(self, kept: Sequence[tuple[Tensor, ...]]) -> list[ActivationGeometry]:
        """Point by point, in a basis of the span of X0 and X1."""
        found = []
        for i in range(len(self._points)):
            start = torch.cat([rows[0] for rows in kept])
            end = torch.cat([rows[i + 1] for rows in kept])
            basis = torch.linalg.qr(torch.cat([start, end]).T.double()).Q
            one = Pairs(1)
            one.num_rows, one._rows = self.num_rows, None
            one._add([start.double() @ basis, end.double() @ basis])
            found += one.geometry()
        return found

    def _of_sums(self, point: _Moved) -> ActivationGeometry:
        raw = _Sums(*map(_matrix, (self._base, point.mixed, point.moved)))
        unit = _Sums(*map(_matrix, (self._unit_base, point.unit_mixed, point.unit_moved)))
        centred = self._centred(raw, _matrix(point.total))
        distance, dimension = _subspace_distance(centred, self.num_rows)
        return ActivationGeometry(
            procrustes=_procrustes(raw),
            gram=_gram(unit),
            cka=_cka(centred),
            cosine_drift=point.cosine / self.num_rows,
            norm_drift=point.norm / self.num_rows,
            subspace_distance=distance,
            dimension=dimension,
            num_tokens=self.num_rows,
        )

    def _centred(self, raw: _Sums, moved: Tensor) -> _Sums:
        start, count = _matrix(self._total), self.num_rows
        return _Sums(
            raw.base - torch.outer(start, start) / count,
            raw.mixed - torch.outer(start, moved) / count,
            raw.moved - torch.outer(moved, moved) / count,
        )


def _summed(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Outer products of rows added to what there is, in place."""
    return left.T @ right if total is None else total.addmm_(left.T, right)


def _matrix(value: Tensor | None) -> Tensor:
    assert value is not None, "nothing was added"
    return value


def _procrustes(sums: _Sums) -> float:
    """Residual of the best orthogonal map from X1 to X0, over ||X0||_F."""
    left, _, right = torch.linalg.svd(sums.base + sums.mixed.T)
    turn = left @ right
    off = turn - torch.eye(len(turn), dtype=turn.dtype, device=turn.device)
    squares = (
        (off * (sums.base @ off)).sum()
        + 2 * (off * (sums.mixed @ turn)).sum()
        + sums.moved.trace()
    )
    return _root(float(squares) / max(float(sums.base.trace()), TINY))


def _gram(sums: _Sums) -> float:
    """||Z1 Z1^T - Z0 Z0^T||_F over ||Z0 Z0^T||_F."""
    base, mixed, moved = sums
    squares = (
        2 * (base * moved).sum()
        + 2 * (mixed * mixed.T).sum()
        + moved.square().sum()
        + 4 * (mixed * moved).sum()
    )
    return _root(float(squares) / max(float(base.square().sum()), TINY))


def _cka(sums: _Sums) -> float:
    """Linear CKA of centred rows."""
    cross = sums.base + sums.mixed
    after = cross + sums.mixed.T + sums.moved
    scale = torch.linalg.matrix_norm(sums.base) * torch.linalg.matrix_norm(after)
    return float(cross.square().sum() / scale.clamp(min=TINY))


def _subspace_distance(sums: _Sums, num_rows: int) -> tuple[float, int]:
    """Between the leading principal subspaces, and their dimension."""
    dimension = max(1, min(DIMENSION, len(sums.base), num_rows - 1))
    after = sums.base + sums.mixed + sums.mixed.T + sums.moved
    before, behind = (
        torch.linalg.eigh((m + m.T) / 2).eigenvectors[:, -dimension:] for m in (sums.base, after)
    )
    left = behind - before @ (before.T @ behind)
    return float(torch.linalg.matrix_norm(left)) / math.sqrt(dimension), dimension


def _root(square: float) -> float:
    return math.sqrt(max(square, 0.0))
