"""Estimate mean scores over all items for points measured on some of them. Pure numpy.

Points near one another answer the same items correctly. This is modelled by the correlation of two
points' scores over items: `floor + height * decay`. The decay is exponential in the distances in
strength and in log steps, lower by a factor between different steps or profiles. Sampled answers
lower the height; the floor is shared by all pairs. The scales of the decay are those candidates
below that, with the best height and floor, fit the observed correlations of all objectives best.

Given the correlations and each point's standard deviation, the means are estimated by generalized
least squares (Aitken 1935): groups of items measured at the same points are observations of these
points' means with correlated errors. With nested rungs this is the regression estimator for
monotone missing data (Anderson 1957), with slopes from the modelled correlation rather than fitted
to a few items: a point of few items is corrected by what points of more items, above all the
nearest, gain or lose on the further items. A point measured on all items keeps its plain mean.

The covariance of the errors is stated for one deviation, pooled over the points. With each point's
own it would say that errors of high scores are large and of one sign, so that a bump along alpha
would pass for an error all points share, and smoothing would lay the curve below nearly all scores
(17.5% of 80 items became 6.3%). This is Peelle's pertinent puzzle; its cure is to take common
errors from a common value.

Items of a cluster share part of their score. Deviations and correlations are therefore taken over
clusters (`cluster_scores`), and stated an item: the variance over n items is that of the mean.

Source: T. W. Anderson, Maximum likelihood estimates for a multivariate normal distribution when
some observations are missing, JASA 52 (1957). S. Chiba, D. L. Smith, A suggested procedure for
resolving an anomaly in least-squares data analysis known as Peelle's pertinent puzzle,
ANL/NDM-121 (1991).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from backtrack.selection.stats.distances import point_distances

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

STRENGTH_SCALES = (0.35, 0.2, 0.6, 1.0)
"""Candidate length scales of the decay, in strength."""
LOG_STEP_SCALES = (2.0, 1.0, 4.0)
"""Candidate length scales of the decay, in log2 of steps."""
FACTORS = (0.7, 0.9, 0.5)
"""Candidate factors of the decay between different steps or incomparable profiles."""
MAX_CORRELATION = 0.995
"""Highest correlation of two points, reached at distance zero without sampled answers."""
PRIOR_ITEMS = 8.0
"""Weight of the objective's mean variance in a point's variance, in items."""
_JITTER = 1e-6


@dataclass(frozen=True)
class ItemGroup:
    """Items measured at the same points.

    Attributes:
        items: Columns of the items.
        points: Rows of the points.
        scores: Scores of these points on these items, [points, items].
        gain: Coefficients of the group's means in all points' estimates, [all points, points].
    """

    items: NDArray[np.intp]
    points: NDArray[np.intp]
    scores: Floats
    gain: Floats


@dataclass(frozen=True)
class ScoreEstimates:
    """Estimates of mean scores over all items, as linear functions of the measured scores.

    Attributes:
        groups: The items, grouped by the points measured on them.
        covariance: Covariance of the estimates' errors, at the points' pooled deviation, [points,
            points].
    """

    groups: tuple[ItemGroup, ...]
    covariance: Floats

    def scaled(self, factor: float, offset: float) -> ScoreEstimates:
        """Estimates of the means of `factor * score + offset`."""
        groups = tuple(replace(g, scores=factor * g.scores + offset) for g in self.groups)
        return ScoreEstimates(groups, factor**2 * self.covariance)

    @property
    def means(self) -> Floats:
        """Estimated mean over all items, [points]."""
        estimates = np.zeros(len(self.covariance))
        for group in self.groups:
            estimates += group.gain @ group.scores.mean(axis=1)
        # Rounding errors would otherwise rank points whose scores are equal.
        means: Floats = np.round(estimates, 12)
        return means

    def resampled_means(self, weights: Floats) -> Floats:
        """Estimate the means under weights of the items, [samples, points].

        Args:
            weights: Weight of each item in each bootstrap sample, [samples, items].
        """
        estimates = np.zeros((len(weights), len(self.covariance)))
        for group in self.groups:
            counts = weights.take(group.items, axis=1)
            # A group with no item in a sample keeps its plain mean there.
            counts[~counts.any(axis=1)] = 1.0
            means = counts @ group.scores.T / counts.sum(axis=1, keepdims=True)
            estimates += means @ group.gain.T
        return estimates


def cluster_scores(scores: Floats, clusters: Sequence[str]) -> Floats:
    """Sum each point's scores, less their mean, over clusters, [points, clusters].

    With n items in m clusters sums are scaled by the root of m / n, so that their variance over n
    is that of the mean (the linearized ratio of Cochran 1977, chapter 11). Items that are each
    their own cluster are returned as they are.

    Args:
        scores: [points, items], NaN where not measured.
        clusters: Cluster of each item; the item's id where it shares nothing.
    """
    names, of_item = np.unique(clusters, return_inverse=True)
    if len(names) == len(clusters):
        return scores
    is_measured = np.isfinite(scores)
    is_in = np.eye(len(names))[of_item]
    num_items = is_measured.sum(axis=1, keepdims=True)
    means = np.nansum(scores, axis=1, keepdims=True) / num_items
    sums = np.where(is_measured, scores - means, 0.0) @ is_in
    is_reached = is_measured @ is_in > 0
    scaled = sums * np.sqrt(is_reached.sum(axis=1, keepdims=True) / num_items)
    return np.where(is_reached, scaled, np.nan)


def estimate_means(
    scores: Floats, correlations: Floats, by_cluster: Floats | None = None
) -> ScoreEstimates:
    """Estimate mean scores over all items.

    Args:
        scores: [points, items], NaN where not measured; at least two scores per row.
        correlations: Correlation of two points' scores over items, [points, points]; see
            `fit_correlations`.
        by_cluster: The `cluster_scores`; the scores themselves if not given.
    """
    is_measured = np.isfinite(scores)
    known = scores if by_cluster is None else by_cluster
    deviations = _deviations(known, np.isfinite(known))
    variance = float((deviations**2).mean())
    correlations = np.asarray(correlations + _JITTER * np.eye(len(scores)))
    patterns = [(items, points) for items, points in _patterns(is_measured) if len(points)]
    if is_measured.all():
        items, points = patterns[0]
        whole = ItemGroup(items, points, scores, np.eye(len(scores)))
        return ScoreEstimates((whole,), variance * correlations / len(items))
    precision = np.zeros_like(correlations)
    inverses = []
    for items, points in patterns:
        inverses.append(len(items) * np.linalg.inv(correlations[np.ix_(points, points)]))
        precision[np.ix_(points, points)] += inverses[-1]
    errors = np.linalg.inv(precision)
    groups = []
    for (items, points), inverse in zip(patterns, inverses, strict=True):
        gain = deviations[:, None] * (errors[:, points] @ inverse) / deviations[points]
        groups.append(ItemGroup(items, points, scores[np.ix_(points, items)], gain))
    return ScoreEstimates(tuple(groups), np.asarray(variance * errors))


def fit_correlations(points: Sequence[Point], scores: Sequence[Floats]) -> Floats:
    """Fit the modelled correlations to the observed ones of all objectives, [points, points].

    Args:
        points: The points.
        scores: Scores of each objective by cluster, [points, clusters], see `cluster_scores`.
    """
    observed, counts = np.zeros((2, len(points), len(points)))
    for of_objective in scores:
        correlation, count = _observed_correlations(of_objective)
        observed += count * correlation
        counts += count
    np.fill_diagonal(counts, 0.0)
    observed /= np.maximum(counts, 1.0)
    best, lowest = np.eye(len(points)), np.inf
    for decay in _decays(points):
        height, floor = _fit_height_and_floor(decay, observed, counts)
        modelled = floor + height * decay
        misfit = float((counts * (observed - modelled) ** 2).sum())
        if misfit < lowest - 1e-12:
            best, lowest = modelled, misfit
    np.fill_diagonal(best, 1.0)
    return best


def _fit_height_and_floor(decay: Floats, observed: Floats, counts: Floats) -> tuple[float, float]:
    """Fit `floor + height * decay` by weighted least squares.

    Neither is below 0; their sum, the correlation at distance zero, is at most `MAX_CORRELATION`.
    """
    total = max(float(counts.sum()), 1e-12)
    means = [float((counts * values).sum()) / total for values in (decay, observed)]
    x, y = decay - means[0], observed - means[1]
    squares = float((counts * x**2).sum())
    height = float((counts * x * y).sum()) / squares if squares > 0 else 1.0
    height = min(max(height, 0.0), MAX_CORRELATION)
    floor = means[1] - height * means[0]
    if floor < 0:
        squares = float((counts * decay**2).sum())
        moment = float((counts * decay * observed).sum())
        floor, height = 0.0, moment / squares if squares else height
    height, floor = max(height, 0.0), min(floor, MAX_CORRELATION)
    if height + floor > MAX_CORRELATION:
        squares = float((counts * (1 - decay) ** 2).sum())
        moment = float((counts * (1 - decay) * (observed - MAX_CORRELATION * decay)).sum())
        floor = min(max(moment / squares, 0.0), MAX_CORRELATION) if squares else 0.0
        height = MAX_CORRELATION - floor
    return height, floor


def _decays(points: Sequence[Point]) -> Iterator[Floats]:
    """Yield the decay under each combination of candidate scales, [points, points] each."""
    distances = point_distances(points)
    is_other = distances.is_other_step | distances.is_other_profile
    step_scales = LOG_STEP_SCALES if distances.log_steps.any() else LOG_STEP_SCALES[:1]
    factors = FACTORS if is_other.any() else FACTORS[:1]
    for strength_scale, step_scale, factor in product(STRENGTH_SCALES, step_scales, factors):
        decay = np.exp(-distances.strength / strength_scale - distances.log_steps / step_scale)
        yield decay * np.where(is_other, factor, 1.0)


def _patterns(is_measured: Flags) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Group items by the points measured on them: columns of items and rows of points."""
    patterns, of_item = np.unique(is_measured, axis=1, return_inverse=True)
    return [
        (np.flatnonzero(of_item.ravel() == i), np.flatnonzero(pattern))
        for i, pattern in enumerate(patterns.T)
    ]


def _deviations(scores: Floats, is_measured: Flags) -> Floats:
    """Compute the standard deviation of each point's scores over items, [points].

    It is shrunk towards the objective's, so that a few equal scores do not count as certain.
    """
    counts = is_measured.sum(axis=1)
    means = np.where(is_measured, scores, 0.0).sum(axis=1) / counts
    squares = (np.where(is_measured, scores - means[:, None], 0.0) ** 2).sum(axis=1)
    mean_variance = squares.sum() / max((counts - 1).sum(), 1)
    variances = (squares + PRIOR_ITEMS * mean_variance) / (counts - 1 + PRIOR_ITEMS)
    deviations: Floats = np.sqrt(variances) + _JITTER
    return deviations


def _observed_correlations(scores: Floats) -> tuple[Floats, Floats]:
    """Compute the correlation of each pair over shared items, and its weight in items."""
    is_measured = np.isfinite(scores)
    ones = is_measured.astype(float)
    known = np.where(is_measured, scores - np.nanmean(scores), 0.0)
    shared = np.maximum(ones @ ones.T, 1.0)
    sums = known @ ones.T
    moments = known @ known.T - sums * sums.T / shared
    deviations = _deviations(scores, is_measured)
    freedom = np.maximum(shared - 1, 0.0)
    correlations = moments / np.maximum(freedom, 1.0) / np.outer(deviations, deviations)
    return correlations, freedom
