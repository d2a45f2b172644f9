"""How weights move with alpha. Pure: nothing here knows a model.

Both ends are exact: at 0 the base's bytes are copied and at 1 the tuned ones, so no rounding of
`base + 1 * (tuned - base)` can creep in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, assert_never

if TYPE_CHECKING:
    from torch import Tensor

Law = Literal["linear", "root"]
"""How a tensor's own coefficient follows alpha: `linear` is alpha, `root` is sqrt(alpha)."""


def line(base: Tensor, tuned: Tensor, alpha: float, *, out: Tensor) -> None:
    """Write `base + alpha * (tuned - base)` into `out`.

    Taken in fp32 and rounded once, into the dtype of `out`. All three have one shape; they may
    differ in dtype and device.
    """
    if alpha == 0:
        out.copy_(base)
    elif alpha == 1:
        out.copy_(tuned)
    else:
        start = base.to(device=out.device).float()
        end = tuned.to(device=out.device).float()
        out.copy_(start + alpha * (end - start))


def coefficient(law: Law, alpha: float) -> float:
    """The coefficient of a tensor under `law` at `alpha`.

    The root is PEFT-Arena's for the generator of a rotation (arXiv 2605.28819).
    """
    match law:
        case "linear":
            return alpha
        case "root":
            return math.sqrt(alpha)
        case _:
            assert_never(law)
