"""An update in the singular directions of the weight it is added to.

EXACT computes all singular directions of W0 and all singular values of dW. RANDOMIZED finds the
leading directions of both by projection onto random vectors and power steps (Halko, Martinsson and
Tropp 2011), in a fraction of the time, and says how far off it is: for each direction
||W0 v_i - s_i u_i|| bounds the distance from s_i to a singular value of W0. What it cannot see of
dW is known by its norm alone; the effective rank is given for that norm spread evenly over all
directions left, and between the least and the most spread that it can have. An update of a rank
below the number of directions is found whole.
The sum of all singular values of W0, a scale of the profiles, is that of the smaller Gram
matrix's eigenvalues in fp64 where the mode is randomized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from backtrack.records.diagnosis import Spectrum

if TYPE_CHECKING:
    from torch import Tensor

    from backtrack.records.diagnosis import Mode

NUM_DIRECTIONS = 128
"""Leading directions of the randomized mode."""
OVERSAMPLED = 32
POWER_STEPS = 4
EXACT_UP_TO = 2048
"""Shorter side up to which `auto` is exact."""
NUM_SHOWN = 128
"""Directions a profile is written down for."""
ROUNDING = 3e-6
"""Of singular values in fp32, as a share of the largest: smaller ones are taken for 0."""
FLOOR = 1e-12
"""Of a profile, as a share of its largest value."""


@dataclass(frozen=True)
class Directions:
    """Singular directions of a base weight.

    Attributes:
        left: u_i in columns, [out, directions].
        values: s_i, descending, [directions].
        right: v_i in columns, [in, directions].
        total: Sum of all singular values.
        error: Largest ||W0 v_i - s_i u_i|| over the largest value; 0 where exact.
        mode: How they were found.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    total: float
    error: float
    mode: Mode


def pick_mode(asked: Literal["auto", "exact", "randomized"], shape: tuple[int, int]) -> Mode:
    """The mode for a weight, `auto` resolved."""
    if asked != "auto":
        return asked
    return "exact" if min(shape) <= EXACT_UP_TO else "randomized"


def directions(weight: Tensor, mode: Mode, seed: int = 0) -> Directions:
    """Singular directions of a base weight, in fp32 on its device.

    Args:
        weight: W0, [out, in].
        mode: All of them, or the leading ones.
        seed: Of the random vectors.
    """
    wide = weight.float()
    if mode == "exact" or min(wide.shape) <= NUM_DIRECTIONS + OVERSAMPLED:
        left, values, right = torch.linalg.svd(wide, full_matrices=False)
        return Directions(left, values, right.T, float(values.double().sum()), 0.0, "exact")
    left, values, right = (t[..., :NUM_DIRECTIONS] for t in _leading(wide, seed))
    residual = torch.linalg.vector_norm(wide @ right - left * values, dim=0)
    total = float(_all_values(wide).sum())
    return Directions(left, values, right, total, float(residual.max() / values[0]), "randomized")


def _leading(matrix: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triplets by subspace iteration, columns; the last ones are the roughest."""
    generator = torch.Generator().manual_seed(seed)
    size = (matrix.shape[1], NUM_DIRECTIONS + OVERSAMPLED)
    basis = torch.randn(size, generator=generator).to(matrix.device)
    found = torch.linalg.qr(matrix @ basis).Q
    for _ in range(POWER_STEPS):
        found = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ found).Q).Q
    inner, values, right = torch.linalg.svd(found.T @ matrix, full_matrices=False)
    return found @ inner, values, right.T


def _all_values(matrix: Tensor) -> Tensor:
    """All singular values from the smaller Gram matrix in fp64: right to 1e-8 of the largest."""
    wide = matrix.double()
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    values: Tensor = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return values


def spectrum(base: Directions, update: Tensor, seed: int = 0) -> Spectrum:
    """The profiles and the effective rank of an update.

    Args:
        base: Directions of the weight it is added to.
        update: dW, [out, in], on the same device.
        seed: Of the random vectors.
    """
    wide = update.float()
    carried = wide @ base.right
    # u^T W v - s is u^T dW v, without the rounding of two large numbers that cancel.
    retention = (base.left * carried).sum(dim=0).abs() / base.total
    adaptation = torch.linalg.vector_norm(carried, dim=0) / base.values[0]
    rank, low, high = effective_rank(wide, base.mode, seed)
    shown = _shown(len(base.values))
    return Spectrum(
        mode=base.mode,
        error=base.error,
        directions=tuple(i + 1 for i in shown),
        retention=tuple(retention[shown].tolist()),
        adaptation=tuple(adaptation[shown].tolist()),
        retention_fluctuation=fluctuation(retention),
        adaptation_fluctuation=fluctuation(adaptation),
        effective_rank=rank,
        effective_rank_low=low,
        effective_rank_high=high,
    )


def fluctuation(profile: Tensor) -> float:
    """How spiky a profile is, in decades; for the definition see the package's docstring.

    Args:
        profile: Numbers from 0 up, [directions].
    """
    top = float(profile.max())
    if top == 0 or len(profile) < 2:
        return 0.0
    decades = profile.double().clamp(min=FLOOR * top).log10()
    return float(decades.diff().abs().mean())


def effective_rank(update: Tensor, mode: Mode, seed: int = 0) -> tuple[float, float, float]:
    """Exponential of the entropy of the singular values over their sum; estimate, least, most.

    Args:
        update: [out, in]
        mode: All singular values, or the leading ones and bounds for what is left.
        seed: Of the random vectors.
    """
    norm = float(torch.linalg.vector_norm(update.double()))
    if norm == 0:
        return 0.0, 0.0, 0.0
    side = min(update.shape)
    if mode == "exact" or side <= NUM_DIRECTIONS + OVERSAMPLED:
        rank = _entropy_rank(torch.linalg.svdvals(update).double())
        return rank, rank, rank
    left, found, _ = _leading(update, seed)
    values = found.double()
    # Taken from what is left, not from two sums of squares that cancel.
    rest = float((update - left @ (left.T @ update)).double().square().sum())
    if rest <= (ROUNDING * norm) ** 2:
        rank = _entropy_rank(values)
        return rank, rank, rank
    num_left, last = side - len(values), float(values[-1])
    # Least spread: numbers as large as the last one seen. Most spread: all equal.
    least = min(num_left, max(1, math.floor(rest / last**2)))
    low, high = (_entropy_rank(_with_tail(values, rest, count)) for count in (least, num_left))
    return high, low, high


def _with_tail(values: Tensor, rest: float, count: int) -> Tensor:
    tail = torch.full((count,), math.sqrt(rest / count), dtype=values.dtype, device=values.device)
    return torch.cat([values, tail])


def _entropy_rank(values: Tensor) -> float:
    # x log x is 0 at 0; what rounding leaves of a direction that does not move counts as 0.
    values = torch.where(values > ROUNDING * values.max(), values, 0.0)
    shares = values / values.sum()
    return math.exp(-float(torch.special.xlogy(shares, shares).sum()))


def _shown(count: int) -> list[int]:
    """Which directions are written down: all, or the first half of them and then ever fewer."""
    if count <= NUM_SHOWN:
        return list(range(count))
    half = NUM_SHOWN // 2
    steps = torch.logspace(math.log10(half + 1), math.log10(count), half, dtype=torch.float64)
    return [*range(half), *sorted({round(step) - 1 for step in steps.tolist()})]
