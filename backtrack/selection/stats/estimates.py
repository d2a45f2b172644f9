"""Means over all items, of points measured on part of them. Pure numpy.

Points near one another get the same items right. That is modelled by a LIKENESS, the correlation
of two points' scores over items: it falls off exponentially with the distance in strength and in
log steps, lower by a factor between unlike steps, from a height that sampled answers lower, to a
floor that all points share. The scales are those offered below that come nearest, with the best
height and floor, to the correlations seen over all objectives.

Given the likeness and each point's deviation, the means are those of generalized least squares
(Aitken 1935): groups of items measured at the same points are observations of these points' means
with correlated errors. With nested parts this is the regression estimator for monotone missing
data (Anderson 1957), its slopes taken from the likeness rather than fitted to a few items: a point
of few items is set right by what points of more items, the nearest above all, gained or lost
beyond them. A point measured on all items keeps its plain mean.

Source: T. W. Anderson, Maximum likelihood estimates for a multivariate normal distribution when
some observations are missing, JASA 52 (1957).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from backtrack.selection.stats.distances import spacing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

LENGTHS = (0.35, 0.2, 0.6, 1.0)
"""In strength."""
DOUBLINGS = (2.0, 1.0, 4.0)
"""Lengths in steps, as powers of two."""
LIKENESSES = (0.7, 0.9, 0.5)
"""Between unlike steps or profiles at no distance."""
MOST_ALIKE = 0.995
"""Likeness of two points at no distance, at most; what answers are sampled anew leave less."""
PRIOR_ITEMS = 8.0
"""A point's variance is drawn to the objective's mean variance by so many items."""
_JITTER = 1e-6


@dataclass(frozen=True)
class Group:
    """Items measured at the same points.

    Attributes:
        items: Their columns.
        points: The points' rows.
        scores: [points, items] of these.
        gain: Of all points' estimates on these means, [all points, points].
    """

    items: NDArray[np.intp]
    points: NDArray[np.intp]
    scores: Floats
    gain: Floats


@dataclass(frozen=True)
class Completed:
    """Scores, some of them missing, as estimates of means over all items.

    Attributes:
        groups: The items.
        covariance: Of the estimates' errors, [points, points].
    """

    groups: tuple[Group, ...]
    covariance: Floats

    @property
    def means(self) -> Floats:
        """Estimates of the mean over all items, [points]."""
        found = np.zeros(len(self.covariance))
        for group in self.groups:
            found += group.gain @ group.scores.mean(axis=1)
        # Without the last bits, which would set apart points whose answers are all right.
        means: Floats = np.round(found, 12)
        return means

    def sampled(self, weights: Floats) -> Floats:
        """Estimates where items count so much each, [samples, points].

        Args:
            weights: [samples, items]
        """
        found = np.zeros((len(weights), len(self.covariance)))
        for group in self.groups:
            counts = weights[:, group.items]
            totals = counts.sum(axis=1, keepdims=True)
            # A group of which a sample has no item stays at its own mean.
            counts = np.where(totals > 0, counts, 1.0)
            drawn = counts @ group.scores.T / counts.sum(axis=1, keepdims=True)
            found += drawn @ group.gain.T
        return found


def complete(scores: Floats, likeness: Floats) -> Completed:
    """Estimate means over all items.

    Args:
        scores: [points, items], NaN where not measured; a row has at least two scores.
        likeness: Correlation of two points' scores, [points, points]; see `likeness_of`.
    """
    there = np.isfinite(scores)
    errors = _errors(scores, there, likeness)
    found = [(items, points) for items, points in _groups(there) if len(points)]
    if there.all():
        items, points = found[0]
        whole = Group(items, points, scores, np.eye(len(scores)))
        return Completed((whole,), errors / len(items))
    precision = np.zeros_like(errors)
    inverses = []
    for items, points in found:
        inverses.append(len(items) * np.linalg.inv(errors[np.ix_(points, points)]))
        precision[np.ix_(points, points)] += inverses[-1]
    covariance = np.linalg.inv(precision)
    groups = tuple(
        Group(items, points, scores[np.ix_(points, items)], covariance[:, points] @ inverse)
        for (items, points), inverse in zip(found, inverses, strict=True)
    )
    return Completed(groups, covariance)


def likeness_of(points: Sequence[Point], scores: Sequence[Floats]) -> Floats:
    """The likeness that comes nearest to the correlations seen, [points, points].

    Args:
        points: The points.
        scores: Of each objective, [points, items], NaN where not measured.
    """
    seen, counts = np.zeros((2, len(points), len(points)))
    for each in scores:
        correlation, count = _correlations(each)
        seen += count * correlation
        counts += count
    np.fill_diagonal(counts, 0.0)
    seen /= np.maximum(counts, 1.0)
    best, least = np.eye(len(points)), np.inf
    for fall in _falls(points):
        height, floor = _level(fall, seen, counts)
        likeness = floor + height * fall
        misfit = float((counts * (seen - likeness) ** 2).sum())
        if misfit < least - 1e-12:
            best, least = likeness, misfit
    np.fill_diagonal(best, 1.0)
    return best


def _level(fall: Floats, seen: Floats, counts: Floats) -> tuple[float, float]:
    """Height and floor, neither below 0, at which `floor + height * fall` comes nearest.

    Together they are at most `MOST_ALIKE`, what two points at one place have in common.
    """
    total = max(float(counts.sum()), 1e-12)
    means = [float((counts * each).sum()) / total for each in (fall, seen)]
    apart, rest = fall - means[0], seen - means[1]
    spread = float((counts * apart**2).sum())
    height = float((counts * apart * rest).sum()) / spread if spread > 0 else 1.0
    height = min(max(height, 0.0), MOST_ALIKE)
    floor = means[1] - height * means[0]
    if floor < 0:
        squares = float((counts * fall**2).sum())
        floor, height = 0.0, float((counts * fall * seen).sum()) / squares if squares else height
    height, floor = max(height, 0.0), min(floor, MOST_ALIKE)
    if height + floor > MOST_ALIKE:
        gone = float((counts * (1 - fall) ** 2).sum())
        best = float((counts * (1 - fall) * (seen - MOST_ALIKE * fall)).sum())
        floor = min(max(best / gone, 0.0), MOST_ALIKE) if gone else 0.0
        height = MOST_ALIKE - floor
    return height, floor


def _falls(points: Sequence[Point]) -> Iterator[Floats]:
    """What is offered: likenesses before what all share, [points, points] each."""
    apart = spacing(points)
    is_unlike = apart.is_other_step | apart.is_other_profile
    doublings = DOUBLINGS if apart.later.any() else DOUBLINGS[:1]
    likenesses = LIKENESSES if is_unlike.any() else LIKENESSES[:1]
    for length, doubling, likeness in product(LENGTHS, doublings, likenesses):
        fall = np.exp(-apart.far / length - apart.later / doubling)
        yield fall * np.where(is_unlike, likeness, 1.0)


def _groups(there: Flags) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Items and points of each pattern of measured points."""
    patterns, of_item = np.unique(there, axis=1, return_inverse=True)
    return [
        (np.flatnonzero(of_item.ravel() == i), np.flatnonzero(pattern))
        for i, pattern in enumerate(patterns.T)
    ]


def _errors(scores: Floats, there: Flags, likeness: Floats) -> NDArray[Any]:
    """Covariance of points' scores over items, [points, points]."""
    deviations = _deviations(scores, there)
    errors = deviations[:, None] * likeness * deviations
    return errors + np.diag(_JITTER * deviations**2)


def _deviations(scores: Floats, there: Flags) -> Floats:
    """Of a point's scores, [points]; few items all right do not count as certain."""
    counts = there.sum(axis=1)
    means = np.where(there, scores, 0.0).sum(axis=1) / counts
    squares = (np.where(there, scores - means[:, None], 0.0) ** 2).sum(axis=1)
    mean_variance = squares.sum() / max((counts - 1).sum(), 1)
    variances = (squares + PRIOR_ITEMS * mean_variance) / (counts - 1 + PRIOR_ITEMS)
    found: Floats = np.sqrt(variances) + _JITTER
    return found


def _correlations(scores: Floats) -> tuple[Floats, Floats]:
    """Of points over the items they share, and how many items these count for; all pairs."""
    there = np.isfinite(scores)
    ones = there.astype(float)
    known = np.where(there, scores - np.nanmean(scores), 0.0)
    shared = np.maximum(ones @ ones.T, 1.0)
    sums = known @ ones.T
    moments = known @ known.T - sums * sums.T / shared
    deviations = _deviations(scores, there)
    freedom = np.maximum(shared - 1, 0.0)
    correlations = moments / np.maximum(freedom, 1.0) / np.outer(deviations, deviations)
    return correlations, freedom
