"""The anchors, and the search space a sampler draws from. Plain data.

PARAMETERS are a point as Optuna sees it: index of the step, alpha, kind of profile, multipliers.
Alpha lies on a grid of 0.01 and multipliers on a grid of 0.05, so that near proposals are the same
point. The multipliers of every profile are parameters; those of other profiles have no effect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backtrack.path.profiles import BY_STRENGTH, parse_known
from backtrack.point import Point

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.recipe import SearchSection

    Value = int | float | str

EARLIER_ALPHAS = (0.5,)
"""Alphas of earlier checkpoints that are always measured, besides 1."""
DOUBLING = 0.3
"""Alphas that a doubling of the steps counts as at alpha 1."""
ALPHA_STEP = 0.01
MULTIPLIER_STEP = 0.05
STEP, ALPHA, PROFILE = "step", "alpha", "profile"
MULTIPLIERS: dict[str, tuple[str, ...]] = {
    "depth": ("depth_first", "depth_last"),
    "blocks": ("blocks_early", "blocks_middle", "blocks_late"),
    "modules": ("modules_attention", "modules_mlp"),
}
"""Parameters of each profile that has multipliers, in the order of its spelling."""


def anchors(steps: Sequence[int], section: SearchSection) -> tuple[Point, ...]:
    """Points that are always measured: base, final checkpoint, its alphas, earlier checkpoints.

    Earlier checkpoints are measured at alpha 1 and at `EARLIER_ALPHAS`: where training went too
    far, the best point lies at one of them, and not at its full strength. The profiles `safe`,
    `level` and `min`, if the search may propose them, are measured at alpha 1: they are designed
    to need no search for alpha.

    Args:
        steps: The run's steps, ascending; at least one.
        section: The recipe's search section: alphas, number of checkpoints, profiles.
    """
    final = steps[-1]
    earlier = _evenly_spaced(steps, section.checkpoints)
    points = [Point.base(), Point(step=final)]
    points += [Point(step=final, alpha=alpha) for alpha in section.alphas]
    points += [Point(step=step, alpha=a) for a in (1.0, *EARLIER_ALPHAS) for step in earlier]
    points += [Point(step=final, profile=p) for p in section.profiles if p in BY_STRENGTH]
    return tuple(dict.fromkeys(points))


def farthest_first(points: Sequence[Point]) -> tuple[Point, ...]:
    """Sort the anchors so that any first few lie far apart, for a budget that may run out.

    Base and final checkpoint come first. Then the uniform ones by farthest-first traversal:
    always the one farthest from those before, the larger alpha of two equals. Two points are
    apart by their alphas and by what training changed in between: `DOUBLING` for each doubling of
    the steps, times the smaller alpha. Then the others in their order.

    Args:
        points: The result of `anchors`.
    """
    ordered = list(points[:2])
    rest = [p for p in points[2:] if p.profile == "uniform"]
    others = [p for p in points[2:] if p not in rest]

    def distance(point: Point) -> tuple[float, float]:
        return round(min(_distance(point, p) for p in ordered), 9), point.alpha

    while rest:
        ordered.append(max(rest, key=distance))
        rest.remove(ordered[-1])
    return (*ordered, *others)


def _distance(point: Point, other: Point) -> float:
    """How far apart two uniform points lie, in alphas; all steps meet in the base."""
    shared = min(point.alpha, other.alpha)
    doublings = abs(math.log2(point.step / other.step)) if shared else 0.0
    return abs(point.alpha - other.alpha) + DOUBLING * shared * doublings


def _evenly_spaced(steps: Sequence[int], count: int) -> list[int]:
    """`count` of the steps before the last, evenly spaced between start and last step."""
    count = min(count, len(steps) - 1)
    return [steps[len(steps) * (i + 1) // (count + 1) - 1] for i in range(count)]


def max_alpha_on_grid(section: SearchSection) -> float:
    """The largest alpha on the sampler's grid, at least one grid step."""
    return max(
        round(math.floor(section.max_alpha / ALPHA_STEP + 1e-9) * ALPHA_STEP, 2), ALPHA_STEP
    )


@dataclass(frozen=True)
class Space:
    """The search space of a sampler.

    Attributes:
        steps: The run's steps, ascending.
        max_alpha: Largest alpha, on the grid.
        profiles: Kinds of profile, as in the recipe.
        lowest_multiplier: Smallest multiplier of `depth`, `blocks` and `modules`.
        highest_multiplier: Largest multiplier of these.
    """

    steps: tuple[int, ...]
    max_alpha: float
    profiles: tuple[str, ...] = ("uniform",)
    lowest_multiplier: float = 0.0
    highest_multiplier: float = 1.0

    @classmethod
    def of(cls, steps: Sequence[int], section: SearchSection) -> Space:
        """The search space of a run under a recipe's search section."""
        profiles = tuple(dict.fromkeys(section.profiles))
        return cls(tuple(steps), max_alpha_on_grid(section), profiles, *section.multipliers)

    @property
    def multipliers(self) -> tuple[str, ...]:
        """Names of the parameters that are multipliers."""
        return tuple(name for kind in self.profiles for name in MULTIPLIERS.get(kind, ()))

    def point_at(self, parameters: Mapping[str, Value]) -> Point:
        """The point of a sampler's parameters.

        Alpha 0 of any step is the base, and a profile of equal multipliers is uniform.

        Args:
            parameters: Index of the step, alpha, kind of profile and multipliers, by name.
        """
        profile = kind = str(parameters.get(PROFILE, self.profiles[0]))
        alpha = float(parameters[ALPHA])
        if kind in MULTIPLIERS:
            values = [round(float(parameters[name]), 2) for name in MULTIPLIERS[kind]]
            profile = f"{kind}({','.join(f'{value:g}' for value in values)})"
            if len(set(values)) == 1 and alpha * values[0] <= self.max_alpha:
                profile, alpha = "uniform", alpha * values[0]
        step = self.steps[int(parameters[STEP])]
        return Point(step=step, alpha=_on_grid(alpha), profile=profile).canonical

    def parameters_of(self, point: Point) -> dict[str, Value] | None:
        """The parameters on the grid nearest a point; None if it lies outside the space.

        The base is alpha 0 of the last step under the first profile.
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
        multipliers = dict(zip(names, values, strict=True))
        return self._parameters(self.steps.index(point.step), alpha, kind, multipliers)

    def parameters_of_base(self) -> list[dict[str, Value]]:
        """Alpha 0 at up to four steps: a sampler cannot know that all of them are the base."""
        last = len(self.steps) - 1
        indices = dict.fromkeys(round(last * i / 3) for i in range(3, -1, -1))
        return [self._parameters(index, 0.0, self.profiles[0], {}) for index in indices]

    def _parameters(
        self, index: int, alpha: float, kind: str, multipliers: Mapping[str, float]
    ) -> dict[str, Value]:
        """Parameters by name; multipliers of other profiles are set to the highest."""
        parameters: dict[str, Value] = {STEP: index, ALPHA: alpha}
        if len(self.profiles) > 1:
            parameters[PROFILE] = kind
        for name in self.multipliers:
            parameters[name] = self._nearest(multipliers.get(name, self.highest_multiplier))
        return parameters

    def _nearest(self, value: float) -> float:
        """The multiplier on the grid nearest to a value."""
        low = self.lowest_multiplier
        num_steps = math.floor((self.highest_multiplier - low) / MULTIPLIER_STEP + 1e-9)
        index = min(round((value - low) / MULTIPLIER_STEP), num_steps)
        return round(low + index * MULTIPLIER_STEP, 6)


def _on_grid(alpha: float) -> float:
    return round(round(alpha / ALPHA_STEP) * ALPHA_STEP, 2)
