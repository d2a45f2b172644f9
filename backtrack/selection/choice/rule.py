"""The rule that picks a point. Pure numpy.

1. Only points that meet every constraint can be chosen.
2. Target and general are smoothed over the points (see `smoothing`), which gives fitted values.
   Utility is that of the fitted scores.
3. ELIGIBLE are the feasible points measured on as many items as any, and those of fewer items
   that lie on a curve: at least five strengths of one step and profile, the base being one of
   each. The TOP is the eligible point of highest smoothed utility.
4. TIED are the eligible points that the items cannot tell from the top: the paired bootstrap
   interval of top minus point, at 95%, covers zero, both by their smoothed scores; and those
   measured, on all items, no lower than the top, whatever the curve says.
5. The base is the choice where it is tied. Else the choice is the tied point nearest the base, by
   distance, then alpha, then step, of those at most `INDIFFERENCE` points below the top.

NOTE: the tie is judged on fitted values since measured ones cost power. What the rule costs and
gains on recorded runs is measured by tests/bench/replay.py; an `INDIFFERENCE` of 0.5 in place of
0.25 lost 0.02 to 0.03 points there, one without any bound 1.5 to 5.4.

Low power therefore leads towards the base, never away from it: without evidence that a longer way
pays, the shorter one is taken, and the selection says how many items would settle it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from backtrack.records import ROLES, Axis
from backtrack.selection.stats.bootstrap import LEVEL, chances_best
from backtrack.selection.stats.front import POINTS, pareto_front
from backtrack.selection.stats.gaussian_process import is_on_curve, smooth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point
    from backtrack.selection.stats.gaussian_process import Smoothing

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

_POINTS = Axis(unit=POINTS, direction="maximize")
INDIFFERENCE = 0.25
"""Points of utility that standing nearer to the base may cost."""
_NO_GAP = 1e-9


@dataclass(frozen=True)
class Decision:
    """What the rule made of the points; arrays are [points].

    Attributes:
        chosen: Column of the choice.
        top: Column of the highest smoothed utility.
        smoothed: Utility of the smoothed scores.
        is_tied: Eligible and not told apart from the top.
        chances: Share of bootstrap samples in which it is highest by smoothed scores, among the
            eligible.
    """

    chosen: int
    top: int
    smoothed: Floats
    is_tied: Flags
    chances: Floats


@dataclass(frozen=True)
class SmoothedScores:
    """Points and what their items say of their utility under a weight.

    Attributes:
        points: The points, the base among them.
        distances: From the base, [points].
        shares: Of the items each was measured on, [points].
        weight: Of the target.
        roles: Target and general as measured, in points, [roles, points].
        role_samples: Paired bootstrap samples of them, [roles, resamples, points].
        role_errors: Covariance of their errors, in squared points, [roles, points, points].
    """

    points: Sequence[Point]
    distances: Floats
    shares: Floats
    weight: float
    roles: Floats
    role_samples: Floats
    role_errors: Floats

    def at(self, weight: float) -> SmoothedScores:
        """The same under another weight; what was fitted is kept."""
        other = replace(self, weight=weight)
        for name in ("smoothings", "smoothed_role_samples", "is_on_front"):
            other.__dict__[name] = getattr(self, name)
        return other

    @property
    def utilities(self) -> Floats:
        """As measured, in points, [points]."""
        return self.weigh(self.roles)

    @property
    def samples(self) -> Floats:
        """Paired bootstrap samples of them, [resamples, points]."""
        return self.weigh(self.role_samples)

    @cached_property
    def smoothings(self) -> tuple[Smoothing, ...]:
        """How each role's scores are smoothed."""
        pairs = zip(self.roles, self.role_errors, strict=True)
        return tuple(smooth(self.points, scores, errors) for scores, errors in pairs)

    @property
    def smoothed_roles(self) -> Floats:
        """Target and general, smoothed, [roles, points]."""
        pairs = zip(self.smoothings, self.roles, strict=True)
        return np.stack([smoothing.matrix @ role for smoothing, role in pairs])

    @cached_property
    def smoothed(self) -> Floats:
        """Utility of the smoothed scores, [points]."""
        return self.weigh(self.smoothed_roles)

    @cached_property
    def fitted(self) -> Floats:
        """Bootstrap samples of it, [resamples, points], a point's own next to one another."""
        return np.asfortranarray(self.weigh(self.smoothed_role_samples))

    @cached_property
    def smoothed_role_samples(self) -> Floats:
        """Bootstrap samples of target and general there, [roles, resamples, points]."""
        pairs = zip(self.smoothings, self.role_samples, strict=True)
        return np.stack([samples @ smoothing.matrix.T for smoothing, samples in pairs])

    @property
    def is_deepest(self) -> Flags:
        """Measured on as many items as any, [points]."""
        return np.asarray(self.shares >= self.shares.max())

    @property
    def is_held(self) -> Flags:
        """Measured on as many items as any, or on a curve, [points]."""
        return self.is_deepest | is_on_curve(self.points)

    @cached_property
    def is_on_front(self) -> Flags:
        """Held, and no other held point is better on both smoothed roles, [points]."""
        held = np.flatnonzero(self.is_held)
        target, general = self.smoothed_roles[:, held]
        flags = np.zeros(len(self.points), dtype=bool)
        flags[held] = pareto_front(target, general, dict.fromkeys(ROLES, _POINTS))
        return flags

    def ranked(self) -> list[int]:
        """Columns that may be the top, the highest smoothed utility first, then the nearer."""
        found = np.flatnonzero(self.is_held)
        return sorted(map(int, found), key=lambda i: (-self.smoothed[i], self.distances[i]))

    def preferred(self) -> list[int]:
        """All columns, the base first, then the nearest: by distance, then alpha, then step."""

        def way(i: int) -> tuple[bool, float, float, int]:
            point = self.points[i]
            return not point.is_base, float(self.distances[i]), point.alpha, point.step

        return sorted(range(len(self.points)), key=way)

    def weigh(self, roles: Floats) -> Floats:
        """Utility of target and general: the weight's mean over the first axis."""
        utilities: Floats = self.weight * roles[0] + (1 - self.weight) * roles[1]
        return utilities


def choose(smoothed_scores: SmoothedScores, is_feasible: Flags) -> Decision:
    """Apply the rule.

    Args:
        smoothed_scores: The points.
        is_feasible: Which meet every constraint, [points]; at least one of them eligible.
    """
    is_eligible = is_feasible & smoothed_scores.is_held
    top = next(i for i in smoothed_scores.ranked() if is_feasible[i])
    is_tied = is_eligible & tied_with(smoothed_scores, top)
    chances = np.zeros(len(smoothed_scores.points))
    chances[is_eligible] = chances_best(smoothed_scores.fitted[:, is_eligible])
    is_open = is_tied & worth_choosing(smoothed_scores, top)
    chosen = next(i for i in smoothed_scores.preferred() if is_open[i])
    return Decision(chosen, top, smoothed_scores.smoothed, is_tied, chances)


def tied_with(smoothed_scores: SmoothedScores, top: int) -> Flags:
    """Points that the items cannot tell from the top (rule 4), eligible or not."""
    utilities = smoothed_scores.utilities
    is_as_high = (utilities >= utilities[top]) & smoothed_scores.is_deepest
    is_tied = is_as_high | _not_worse(top, smoothed_scores.fitted)
    is_tied[top] = True
    return np.asarray(is_tied)


def worth_choosing(smoothed_scores: SmoothedScores, top: int) -> Flags:
    """Points that give up little of the top's utility, and the base (rule 5).

    The base comes first in `preferred`, so that it is taken wherever it is tied.
    """
    is_base = np.array([point.is_base for point in smoothed_scores.points])
    is_near = smoothed_scores.smoothed >= smoothed_scores.smoothed[top] - INDIFFERENCE
    return np.asarray(is_base | is_near)


def _not_worse(top: int, samples: Floats) -> Flags:
    """Points whose interval of top minus point does not lie above zero; it never lies below.

    Sorting is left out where counting says as much: the quantile lies between two neighbours in
    order, `below` of them under the lower one.
    """
    below = math.floor((1 - LEVEL) / 2 * (len(samples) - 1))
    counts = np.count_nonzero(samples[:, top] - _NO_GAP <= samples.T, axis=1)
    flags: Flags = counts > below + 1
    close = np.flatnonzero(counts == below + 1)
    if len(close):
        gaps = samples[:, [top]] - samples[:, close]
        flags[close] = np.quantile(gaps, (1 - LEVEL) / 2, axis=0) <= _NO_GAP
    return flags
