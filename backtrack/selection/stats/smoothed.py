"""Role scores smoothed over the points, and their utility under a weight. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from backtrack.point import Point
from backtrack.selection.stats.front import pareto_front
from backtrack.selection.stats.gaussian_process import fit_smoother, is_on_curve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backtrack.selection.stats.gaussian_process import Smoother

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

UNMEASURED = 1e4
"""Error of a score that says nothing, in points."""


@dataclass(frozen=True)
class SmoothedRoles:
    """Target and general score of each point, smoothed: all that does not depend on the weight.

    Attributes:
        points: The points, the base among them.
        distances: Distance of each point's weights from the base, [points].
        shares: Share of the items each point was measured on, [points].
        scores: Measured target and general, in points, [roles, points].
        samples: Paired bootstrap samples of the scores, [roles, resamples, points].
        errors: Covariance of the scores' errors, in squared points, [roles, points, points].
    """

    points: Sequence[Point]
    distances: Floats
    shares: Floats
    scores: Floats
    samples: Floats
    errors: Floats

    def at(self, weight: float) -> SmoothedScores:
        """Weigh the scores; smoothers and samples are shared by all weights."""
        return SmoothedScores(self, weight)

    def with_unmeasured(self, points: Sequence[Point]) -> SmoothedRoles:
        """The same scores, smoothed over further points that are not measured.

        Such a point has a score of no weight, as one measured with an error of `UNMEASURED`.
        """
        more, known = len(points), len(self.points)

        def padded(values: Floats) -> Floats:
            return np.concatenate([values, np.zeros((*values.shape[:-1], more))], axis=-1)

        errors = np.zeros((len(self.errors), known + more, known + more))
        errors[:, :known, :known] = self.errors
        unmeasured = np.arange(known, known + more)
        errors[:, unmeasured, unmeasured] = UNMEASURED**2
        return replace(
            self,
            points=(*self.points, *points),
            distances=padded(self.distances),
            shares=padded(self.shares),
            scores=padded(self.scores),
            samples=padded(self.samples),
            errors=errors,
        )

    @cached_property
    def smoothers(self) -> tuple[Smoother, ...]:
        """Smoother of each role."""
        pairs = zip(self.scores, self.errors, strict=True)
        return tuple(fit_smoother(self.points, scores, errors) for scores, errors in pairs)

    @cached_property
    def smoothed(self) -> Floats:
        """Smoothed target and general, in points, [roles, points]."""
        pairs = zip(self.smoothers, self.scores, strict=True)
        exact = np.stack([smoother.matrix @ scores for smoother, scores in pairs])
        # Rounding errors would otherwise rank points whose scores are equal.
        return np.round(exact, 9)

    @cached_property
    def smoothed_samples(self) -> Floats:
        """Bootstrap samples of `smoothed`, [roles, resamples, points]."""
        pairs = zip(self.smoothers, self.samples, strict=True)
        return np.stack([samples @ smoother.matrix.T for smoother, samples in pairs])

    @property
    def base(self) -> int:
        """Column of the base."""
        return self.points.index(Point.base())

    @property
    def has_most_items(self) -> Flags:
        """Whether each point was measured on as many items as any other, [points]."""
        return np.asarray(self.shares >= self.shares.max())

    @cached_property
    def is_eligible(self) -> Flags:
        """Whether each point is deepest or lies on a curve of enough strengths, [points]."""
        return self.has_most_items | is_on_curve(self.points)

    @cached_property
    def is_on_front(self) -> Flags:
        """Whether each point is eligible and on the front of the eligible ones, [points]."""
        return self.front_of(np.ones(len(self.points), dtype=bool))

    def front_of(self, is_open: Flags) -> Flags:
        """Whether each point is on the front of the open ones that are eligible, [points].

        The front is that of the smoothed scores.
        """
        columns = np.flatnonzero(is_open & self.is_eligible)
        target, general = self.smoothed[:, columns]
        flags = np.zeros(len(self.points), dtype=bool)
        flags[columns] = pareto_front(target, general)
        return flags

    @cached_property
    def preferred(self) -> list[int]:
        """All columns: the base, then the others by distance from it, alpha, then step."""

        def order(i: int) -> tuple[bool, float, float, int]:
            point = self.points[i]
            return not point.is_base, float(self.distances[i]), point.alpha, point.step

        return sorted(range(len(self.points)), key=order)


@dataclass(frozen=True)
class SmoothedScores:
    """Measured and smoothed utility of each point under a weight.

    Attributes:
        roles: The role scores.
        weight: Weight of the target in the utility.
    """

    roles: SmoothedRoles
    weight: float

    @cached_property
    def measured(self) -> Floats:
        """Utility of the measured scores, in points, [points]."""
        return self.weigh(self.roles.scores)

    @cached_property
    def smoothed(self) -> Floats:
        """Utility of the smoothed scores, in points, [points]."""
        return self.weigh(self.roles.smoothed)

    @cached_property
    def smoothed_samples(self) -> Floats:
        """Bootstrap samples of `smoothed`, [resamples, points], in column order."""
        return np.asfortranarray(self.weigh(self.roles.smoothed_samples))

    def ranked(self) -> list[int]:
        """List the eligible columns: highest smoothed utility first, then nearest to the base."""
        eligible = map(int, np.flatnonzero(self.roles.is_eligible))
        return sorted(eligible, key=lambda i: (-self.smoothed[i], self.roles.distances[i]))

    def weigh(self, roles: Floats) -> Floats:
        """Compute the utility of target and general, stacked along the first axis."""
        utilities: Floats = self.weight * roles[0] + (1 - self.weight) * roles[1]
        return utilities
