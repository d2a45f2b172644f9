"""How weights move with alpha. Pure: nothing here knows a model.

Both ends are exact: at 0 the base's bytes are copied and at 1 the tuned ones, so no rounding of
`base + 1 * (tuned - base)` can creep in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, assert_never

import torch

if TYPE_CHECKING:
    from torch import Tensor

Law = Literal["linear", "root", "turn"]
"""How a tensor follows alpha: by alpha, by its root, or by turning through an angle."""

CHUNK = 1 << 20
"""Numbers widened at a time where types or devices differ: small enough to stay in a cache."""


def line(base: Tensor, tuned: Tensor, alpha: float, *, out: Tensor) -> None:
    """Write `base + alpha * (tuned - base)` into `out`.

    Taken in fp32 and rounded once, into the dtype of `out`. All three have one shape; they may
    differ in dtype and device. Where they do not, one pass reads both ends and writes `out`.
    """
    if alpha == 0:
        out.copy_(base)
    elif alpha == 1:
        out.copy_(tuned)
    elif base.dtype == tuned.dtype == out.dtype and base.device == tuned.device == out.device:
        torch.lerp(base, tuned, alpha, out=out)
    else:
        _line_across(base, tuned, alpha, out)


def _line_across(base: Tensor, tuned: Tensor, alpha: float, out: Tensor) -> None:
    """The line where types or devices differ, a piece at a time."""
    if not out.is_contiguous():
        out.copy_(torch.lerp(base.to(out.device).float(), tuned.to(out.device).float(), alpha))
        return
    pieces = (torch.split(t.reshape(-1), CHUNK) for t in (base, tuned, out))
    for start, end, here in zip(*pieces, strict=True):
        wide = start.to(out.device, torch.float32, non_blocking=True, copy=True)
        here.copy_(wide.lerp_(end.to(out.device, torch.float32, non_blocking=True), alpha))


def turn(trained: Tensor, alpha: float, *, out: Tensor) -> None:
    """Turn the second Householder vector of every pair from the first to where it was trained.

    Two reflections in the same vector are the identity; in two vectors an angle t apart they
    rotate by 2 t. The angle is taken times the root of alpha, as for a rotation's generator.

    Args:
        trained: Vectors in columns, [features, an even rank].
        alpha: Strength; at 1 the trained vectors are copied.
        out: Written, of the same shape.
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
    """Angles between the vectors of every pair, in radians up to a right one, [rank / 2]."""
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
    """How far merging may move logits, as a share of the largest, by rounding in `dtype`."""
    return 1e-4 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
