"""Describe an update in the singular directions of its base weight.

EXACT computes all singular directions of W0 and all singular values of dW. RANDOMIZED computes the
leading directions of both by random projection and power iterations (Halko, Martinsson and Tropp
2011), in a fraction of the time, and reports its error: for each direction ||W0 v_i - s_i u_i||
bounds the distance from s_i to a singular value of W0. The rest of dW is known by its norm alone:
the effective rank is given for that norm spread evenly over all remaining directions, with bounds
for the least and the most even spread. An update of lower rank than the number of directions is
recovered completely.
In randomized mode the sum of all singular values of W0, which scales the profiles, comes from the
eigenvalues of the smaller Gram matrix in fp64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from backtrack.records.diagnosis import Spectrum

if TYPE_CHECKING:
    from torch import Tensor

    from backtrack.records.diagnosis import Mode

NUM_DIRECTIONS = 128
"""Number of leading directions in randomized mode."""
OVERSAMPLED = 32
POWER_STEPS = 4
EXACT_UP_TO = 2048
"""Shorter side up to which `auto` is exact."""
NUM_SHOWN = 128
"""Most directions of a recorded profile."""
ROUNDING = 3e-6
"""Relative rounding error of singular values in fp32; those below this share of the largest count
as 0."""
WINDOW = 5
"""Directions of a moving average."""
FLOOR = 1e-12
"""Floor of a profile, as a share of its largest value."""


@dataclass(frozen=True)
class Directions:
    """Singular directions of a base weight.

    Attributes:
        left: Left singular vectors u_i as columns, [out, directions].
        values: Singular values s_i, descending, [directions].
        right: Right singular vectors v_i as columns, [in, directions].
        total: Sum of all singular values of the weight.
        error: Largest ||W0 v_i - s_i u_i||, divided by the largest singular value; 0 if exact.
        mode: How they were computed.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    total: float
    error: float
    mode: Mode


def pick_mode(mode: Literal["auto", "exact", "randomized"], shape: tuple[int, int]) -> Mode:
    """Resolve `auto` for the shape of a weight."""
    if mode != "auto":
        return mode
    return "exact" if min(shape) <= EXACT_UP_TO else "randomized"


def directions(weight: Tensor, mode: Mode, seed: int = 0) -> Directions:
    """Compute singular directions of a base weight, in fp32 on its device.

    Args:
        weight: W0, [out, in].
        mode: Whether to compute all directions or the leading ones.
        seed: Seed of the random vectors.
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
    """Leading singular triplets by subspace iteration; the last ones are the least accurate."""
    generator = torch.Generator().manual_seed(seed)
    size = (matrix.shape[1], NUM_DIRECTIONS + OVERSAMPLED)
    basis = torch.randn(size, generator=generator).to(matrix.device)
    span = torch.linalg.qr(matrix @ basis).Q
    for _ in range(POWER_STEPS):
        span = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ span).Q).Q
    inner, values, right = torch.linalg.svd(span.T @ matrix, full_matrices=False)
    return span @ inner, values, right.T


def _all_values(matrix: Tensor) -> Tensor:
    """All singular values from the smaller Gram matrix in fp64: exact to 1e-8 of the largest."""
    wide = matrix.double()
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    values: Tensor = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return values


def spectrum(base: Directions, update: Tensor, seed: int = 0) -> Spectrum:
    """Compute the profiles and the effective rank of an update.

    Args:
        base: Directions of the base weight.
        update: dW, [out, in], on the same device.
        seed: Seed of the random vectors.
    """
    wide = update.float()
    mapped = wide @ base.right
    # u^T W v - s equals u^T dW v, which does not subtract two large numbers.
    retention = (base.left * mapped).sum(dim=0).abs() / base.total
    adaptation = torch.linalg.vector_norm(mapped, dim=0) / base.values[0]
    values = singular_values(wide, base.mode, seed)
    rank, low, high = effective_rank(values)
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
        stable_rank=stable_rank(values),
        retention_deviation=deviation(retention * base.total),
        adaptation_deviation=deviation(adaptation * base.values[0]),
    )


def fluctuation(profile: Tensor) -> float:
    """How spiky a profile is, in decades; the package's docstring defines it.

    Args:
        profile: Non-negative numbers, [directions].
    """
    top = float(profile.max())
    if top == 0 or len(profile) < 2:
        return 0.0
    decades = profile.double().clamp(min=FLOOR * top).log10()
    return float(decades.diff().abs().mean())


def deviation(profile: Tensor) -> float:
    """Mean distance of a profile from its moving average over `WINDOW` directions.

    The profile is mirrored at its ends. This is the fluctuation score of PEFT-Arena's release.

    Args:
        profile: Numbers, [directions].
    """
    if len(profile) < WINDOW:
        return 0.0
    mirrored = torch.nn.functional.pad(profile.double()[None], [WINDOW // 2] * 2, mode="reflect")
    average = mirrored[0].unfold(0, WINDOW, 1).mean(dim=1)
    return float((profile.double() - average).abs().mean())


class SingularValues(NamedTuple):
    """Singular values of an update.

    Attributes:
        leading: Descending, fp64; all of them if exact.
        rest: Sum of the squares of the others.
        num_rest: How many others there are.
    """

    leading: Tensor
    rest: float
    num_rest: int


def singular_values(update: Tensor, mode: Mode, seed: int = 0) -> SingularValues:
    """Compute the singular values of an update.

    Args:
        update: dW, [out, in].
        mode: Whether to compute all of them, or the leading ones and the norm of the rest.
        seed: Seed of the random vectors.
    """
    side = min(update.shape)
    if mode == "exact" or side <= NUM_DIRECTIONS + OVERSAMPLED:
        return SingularValues(torch.linalg.svdvals(update).double(), 0.0, 0)
    left, leading, _ = _leading(update, seed)
    # From the residual itself: the difference of two sums of squares would cancel.
    rest = float((update - left @ (left.T @ update)).double().square().sum())
    if rest <= (ROUNDING * float(torch.linalg.vector_norm(update.double()))) ** 2:
        return SingularValues(leading.double(), 0.0, 0)
    return SingularValues(leading.double(), rest, side - len(leading))


def stable_rank(values: SingularValues) -> float:
    """Sum of the squares over the largest square; 0 for no update."""
    largest = float(values.leading[0]) ** 2
    return (float(values.leading.square().sum()) + values.rest) / largest if largest else 0.0


def effective_rank(found: SingularValues) -> tuple[float, float, float]:
    """Effective rank of an update, with its lower and upper bound.

    It is the exponential of the entropy of the singular values divided by their sum.
    """
    values, rest, num_left = found
    if float(values[0]) == 0:
        return 0.0, 0.0, 0.0
    if num_left == 0:
        rank = _entropy_rank(values)
        return rank, rank, rank
    last = float(values[-1])
    # Least even spread: values as large as the last leading one. Most even: all equal.
    least = min(num_left, max(1, math.floor(rest / last**2)))
    low, high = (_entropy_rank(_with_tail(values, rest, count)) for count in (least, num_left))
    return high, low, high


def _with_tail(values: Tensor, rest: float, count: int) -> Tensor:
    tail = torch.full((count,), math.sqrt(rest / count), dtype=values.dtype, device=values.device)
    return torch.cat([values, tail])


def _entropy_rank(values: Tensor) -> float:
    # x log x is 0 at 0. Values that are only rounding errors count as 0.
    values = torch.where(values > ROUNDING * values.max(), values, 0.0)
    shares = values / values.sum()
    return math.exp(-float(torch.special.xlogy(shares, shares).sum()))


def _shown(count: int) -> list[int]:
    """Directions to record: all, or if they are too many, the first ones and then ever fewer."""
    if count <= NUM_SHOWN:
        return list(range(count))
    half = NUM_SHOWN // 2
    steps = torch.logspace(math.log10(half + 1), math.log10(count), half, dtype=torch.float64)
    return [*range(half), *sorted({round(step) - 1 for step in steps.tolist()})]
