"""How weights move with alpha. Pure functions of tensors.

Both ends are exact: at alpha 0 the base tensor is copied and at alpha 1 the tuned one, so
`base + 1 * (tuned - base)` is never computed and never rounded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, assert_never

import torch

if TYPE_CHECKING:
    from torch import Tensor

Law = Literal["linear", "root", "turn"]
"""How a tensor follows alpha: by alpha, by its square root, or by turning through an angle."""

CHUNK = 1 << 20
"""Numbers widened at a time if types or devices differ: small enough to stay in a CPU cache."""


def line(base: Tensor, tuned: Tensor, alpha: float, *, out: Tensor) -> None:
    """Write `base + alpha * (tuned - base)` into `out`.

    Computed in fp32 and rounded once, into the dtype of `out`. All three have one shape; they may
    differ in dtype and device. If they do not, one pass reads both ends and writes `out`. Integers
    count or index, so nothing is between two of them: they are the tuned ones from the base on.

    NOTE: in bf16 on a CPU the arithmetic is the bound, in the cache or out of it: 1.6e9 values a
    second and core (AVX-512), which move 9.6 GB/s. A core that copies 13 GB/s is matched at 0.74.
    torch.compile, which fuses it too, is 5% faster, and takes 20 s to compile.
    """
    if alpha == 0:
        out.copy_(base)
    elif alpha == 1 or not out.is_floating_point():
        out.copy_(tuned)
    elif base.dtype == tuned.dtype == out.dtype and base.device == tuned.device == out.device:
        torch.lerp(base, tuned, alpha, out=out)
    else:
        _line_across(base, tuned, alpha, out)


def _line_across(base: Tensor, tuned: Tensor, alpha: float, out: Tensor) -> None:
    """The line between tensors of different types or devices, one chunk at a time."""
    if not out.is_contiguous():
        out.copy_(torch.lerp(base.to(out.device).float(), tuned.to(out.device).float(), alpha))
        return
    chunks = (torch.split(t.reshape(-1), CHUNK) for t in (base, tuned, out))
    for start, end, target in zip(*chunks, strict=True):
        wide = start.to(out.device, torch.float32, non_blocking=True, copy=True)
        target.copy_(wide.lerp_(end.to(out.device, torch.float32, non_blocking=True), alpha))


def turn(trained: Tensor, alpha: float, *, out: Tensor) -> None:
    """Turn the second Householder vector of every pair from the first towards its trained value.

    Two reflections in the same vector are the identity; in two vectors an angle t apart they
    rotate by 2 t. The angle is multiplied by the root of alpha, as for a rotation's generator.

    Args:
        trained: Vectors in columns, [features, rank], the rank even.
        alpha: Strength; at 1 the trained vectors are copied.
        out: Result, of the same shape.
    """
    out.copy_(trained)
    if alpha == 1:
        return
    wide = trained.float()
    first, second = wide[:, 0::2], wide[:, 1::2]
    length = second.norm(dim=0)
    along = first / first.norm(dim=0)
    along = torch.where((along * second).sum(dim=0) < 0, -along, along)
    cosine = ((along * second).sum(dim=0) / length).clamp(-1, 1)
    angle = torch.arccos(cosine)
    across = second / length - cosine * along
    across = across / across.norm(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
    reached = angle * math.sqrt(alpha)
    out[:, 1::2] = length * (torch.cos(reached) * along + torch.sin(reached) * across)


def angles(trained: Tensor) -> Tensor:
    """Angles between the vectors of every pair, in radians from 0 to pi / 2, [rank / 2]."""
    first, second = trained.float()[:, 0::2], trained.float()[:, 1::2]
    cosine = (first * second).sum(dim=0) / (first.norm(dim=0) * second.norm(dim=0))
    return torch.arccos(cosine.abs().clamp(max=1))


def coefficient(law: Law, alpha: float) -> float:
    """The coefficient of a tensor under `law` at `alpha`.

    The root is PEFT-Arena's for the generator of a rotation (arXiv 2605.28819).
    """
    match law:
        case "linear":
            return alpha
        case "root" | "turn":
            return math.sqrt(alpha)
        case _:
            assert_never(law)


def rounding(dtype: torch.dtype) -> float:
    """How far merging may move logits by rounding in `dtype`, relative to the largest logit."""
    return 1e-4 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
