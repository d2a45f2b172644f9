"""How far points lie apart, for what is smooth over them. Pure numpy.

A point is placed by its STRENGTHS, alpha times what the profile makes of it in attention and MLP
of the early, middle and late blocks, so that profiles are near one another where they do nearly
the same, and the base lies where all of them start. What `safe` and `min` make of alpha only the
model knows: they stand as uniform, unlike all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backtrack.path.profiles import parse_known

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

_DEPTHS = (1 / 6, 1 / 2, 5 / 6)
_OF_THEIR_OWN = ("safe", "min")


@dataclass(frozen=True)
class Spacing:
    """All pairs of some points, each [points, points].

    Attributes:
        far: Root mean square difference of strengths; between two alphas of one step and profile
            their difference times how strong the profile is.
        later: Doublings of steps between them; the base stands at the last step.
        is_other_step: Whether they are of unlike steps.
        is_other_profile: Whether they are of profiles whose strengths cannot be compared.
    """

    far: Floats
    later: Floats
    is_other_step: Flags
    is_other_profile: Flags


def spacing(points: Sequence[Point]) -> Spacing:
    """How far points lie apart."""
    strengths = np.array(
        [[point.alpha * multiplier for multiplier in _multipliers(point)] for point in points]
    )
    squares = (strengths[:, None] - strengths[None, :]) ** 2
    last = max(1, *(point.step for point in points))
    steps = np.array([last if point.is_base else point.step for point in points])
    doublings = np.log2(steps)
    kinds = np.array([_kind(point) for point in points])
    return Spacing(
        np.sqrt(squares.mean(axis=2)),
        np.abs(doublings[:, None] - doublings),
        steps[:, None] != steps,
        kinds[:, None] != kinds,
    )


def _kind(point: Point) -> str:
    """Empty for profiles that can be compared; the base is of all of them."""
    profile = parse_known(point.profile)
    is_comparable = profile is not None and profile.kind not in _OF_THEIR_OWN
    return "" if point.is_base or is_comparable else point.profile


def _multipliers(point: Point) -> tuple[float, ...]:
    """Of attention in early, middle and late blocks, then of their MLP."""
    profile = parse_known(point.profile)
    match profile and profile.kind, profile.values if profile else ():
        case "depth", (first, last):
            return 2 * tuple(first + depth * (last - first) for depth in _DEPTHS)
        case "blocks", values:
            return 2 * values
        case "modules", (attention, mlp):
            return (attention,) * 3 + (mlp,) * 3
        case _:
            return (1.0,) * 6
