"""Which points are measured: the anchors, and the space a sampler draws from. Plain data.

The sampler works on a grid of hundredths of alpha, and of twentieths of a profile's multipliers,
so that two proposals for one point coincide. A profile's multipliers are parameters of their own,
which count only where the profile is proposed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backtrack.path.profiles import parse_known
from backtrack.point import Point

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.recipe import SearchSection

    Value = int | float | str

ALPHA_STEP = 0.01
MULTIPLIER_STEP = 0.05
STEP, ALPHA, PROFILE = "step", "alpha", "profile"
MULTIPLIERS: dict[str, tuple[str, ...]] = {
    "depth": ("depth_first", "depth_last"),
    "blocks": ("blocks_early", "blocks_middle", "blocks_late"),
    "modules": ("modules_attention", "modules_mlp"),
}
"""Names of the parameters of each profile that has some, in the order they are spelled."""


def anchors(steps: Sequence[int], section: SearchSection) -> tuple[Point, ...]:
    """Points that are always measured: base, final checkpoint, its alphas, earlier checkpoints.

    `safe` and `min`, where the search may propose them, are measured at strength 1: they are meant
    to need no search for a strength.

    Args:
        steps: The run's steps, ascending; at least one.
        section: Which alphas, as written there, how many checkpoints, which profiles.
    """
    final = steps[-1]
    points = [Point.base(), Point(step=final)]
    points += [Point(step=final, alpha=alpha) for alpha in section.alphas]
    points += [Point(step=step) for step in _evenly_spaced(steps, section.checkpoints)]
    points += [Point(step=final, profile=p) for p in section.profiles if p in ("safe", "min")]
    return tuple(dict.fromkeys(points))


def farthest_first(points: Sequence[Point]) -> tuple[Point, ...]:
    """The anchors in an order of which any first few lie far apart, for a budget that may end.

    After the ends comes, again and again, the strength of the final checkpoint farthest from those
    before, the larger of equals; then all else as it was.

    Args:
        points: As `anchors` gives them.
    """
    ends, final = points[:2], points[1]
    rest = [p for p in points[2:] if (p.step, p.profile) == (final.step, final.profile)]
    others = [p for p in points[2:] if p not in rest]
    found = list(ends)

    def way(point: Point) -> tuple[float, float]:
        return round(min(abs(point.alpha - p.alpha) for p in found), 9), point.alpha

    while rest:
        found.append(max(rest, key=way))
        rest.remove(found[-1])
    return (*found, *others)


def _evenly_spaced(steps: Sequence[int], count: int) -> list[int]:
    """`count` of the steps before the last, with equal gaps between start, picks and last."""
    count = min(count, len(steps) - 1)
    return [steps[len(steps) * (i + 1) // (count + 1) - 1] for i in range(count)]


def max_alpha_on_grid(section: SearchSection) -> float:
    """The largest strength on the sampler's grid."""
    return max(
        round(math.floor(section.max_alpha / ALPHA_STEP + 1e-9) * ALPHA_STEP, 2), ALPHA_STEP
    )


@dataclass(frozen=True)
class Space:
    """What a sampler draws from.

    Attributes:
        steps: The run's steps, ascending.
        highest: Largest alpha.
        profiles: Kinds of profile.
        lowest_multiplier: Of a profile.
        highest_multiplier: Likewise.
    """

    steps: tuple[int, ...]
    max_alpha: float
    profiles: tuple[str, ...] = ("uniform",)
    lowest_multiplier: float = 0.0
    highest_multiplier: float = 1.0

    @classmethod
    def of(cls, steps: Sequence[int], section: SearchSection) -> Space:
        """The space a recipe's search describes."""
        profiles = tuple(dict.fromkeys(section.profiles))
        return cls(tuple(steps), max_alpha_on_grid(section), profiles, *section.multipliers)

    @property
    def multipliers(self) -> tuple[str, ...]:
        """Names of the parameters that are multipliers."""
        return tuple(name for kind in self.profiles for name in MULTIPLIERS.get(kind, ()))

    def point_at(self, place: Mapping[str, Value]) -> Point:
        """The point a sampler proposes.

        Strength 0 of any step is the base, and a profile of equal multipliers is uniform.

        Args:
            place: Values by parameter: index of the step, alpha, kind of profile, multipliers.
        """
        profile = kind = str(place.get(PROFILE, self.profiles[0]))
        alpha = float(place[ALPHA])
        if kind in MULTIPLIERS:
            values = [round(float(place[name]), 2) for name in MULTIPLIERS[kind]]
            profile = f"{kind}({','.join(f'{value:g}' for value in values)})"
            if len(set(values)) == 1 and alpha * values[0] <= self.max_alpha:
                profile, alpha = "uniform", alpha * values[0]
        step = self.steps[int(place[STEP])]
        return Point(step=step, alpha=_on_grid(alpha), profile=profile).canonical

    def parameters_of(self, point: Point) -> dict[str, Value] | None:
        """The place nearest a point; none if it lies outside the space.

        The base is strength 0 of the last step under the first profile.
        """
        if point.is_base:
            return self._parameters(len(self.steps) - 1, 0.0, self.profiles[0], {})
        alpha = _on_grid(point.alpha)
        profile = parse_known(point.profile)
        if profile is None:
            return None
        kind, values = profile.kind, profile.values
        names = MULTIPLIERS.get(kind, ())
        is_inside = (
            point.step in self.steps
            and kind in self.profiles
            and alpha <= self.max_alpha
            and all(self.lowest_multiplier <= v <= self.highest_multiplier for v in values)
        )
        if not is_inside:
            return None
        given = dict(zip(names, values, strict=True))
        return self._parameters(self.steps.index(point.step), alpha, kind, given)

    def parameters_of_base(self) -> list[dict[str, Value]]:
        """Where the base lies, at up to four steps: a sampler cannot know that it is one point."""
        last = len(self.steps) - 1
        indices = dict.fromkeys(round(last * rung / 3) for rung in range(3, -1, -1))
        return [self._parameters(index, 0.0, self.profiles[0], {}) for index in indices]

    def _parameters(
        self, index: int, alpha: float, kind: str, given: Mapping[str, float]
    ) -> dict[str, Value]:
        """Multipliers that do not count stand at their highest."""
        place: dict[str, Value] = {STEP: index, ALPHA: alpha}
        if len(self.profiles) > 1:
            place[PROFILE] = kind
        for name in self.multipliers:
            place[name] = self._nearest(given.get(name, self.highest_multiplier))
        return place

    def _nearest(self, value: float) -> float:
        """The multiplier on the grid nearest a value."""
        low = self.lowest_multiplier
        num_steps = math.floor((self.highest_multiplier - low) / MULTIPLIER_STEP + 1e-9)
        index = min(round((value - low) / MULTIPLIER_STEP), num_steps)
        return round(low + index * MULTIPLIER_STEP, 6)


def _on_grid(alpha: float) -> float:
    return round(round(alpha / ALPHA_STEP) * ALPHA_STEP, 2)
