"""Smooth a role's scores over the points with a Gaussian process. Pure numpy.

Measured scores of a role are modelled as a constant plus a smooth function of the point plus
errors of known covariance, that of score estimates over a sample of items (see `estimates`). The
kernel is the product of a Matern 5/2 in strength (see `distances`), a squared exponential in log
steps, and a constant between profiles whose strengths cannot be compared. Smoothed scores are an
average over the candidate amplitudes and length scales below, each weighed by its likelihood.
Given the weights they are linear in the measured scores, so one matrix smooths the bootstrap
samples as well.

NOTE: the best candidate alone is overconfident where scores are few, above all on flat paths. The
average in its place brought the regret of a choice (tests/bench/regret.py) from 0.26 to 0.21
points where the base is best, and left that of other paths as it was.

NOTE: all points are in one fit, also those of other steps. A point left as measured beside
smoothed ones wins by luck: with one fit per curve, the choice was 0.7 points below the best of a
recorded run at the cost of a whole grid (tests/bench/replay.py, table miss), mostly due to lucky
points of other steps.

NOTE: points share items, so their errors are correlated: with losses, most of the error is the
items' own difficulty, and taking it as independent would flatten every curve.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters 2, 4, 5.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from backtrack.selection.stats.distances import point_distances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point
    from backtrack.selection.stats.distances import PointDistances

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

MIN_POINTS = 5
"""Fewer points are not smoothed; also the strengths of one step and profile that make a curve."""
AMPLITUDES = (2.5, 5.0, 10.0, 20.0, 40.0)
"""Candidate amplitudes, in points."""
STRENGTH_SCALES = (0.9, 0.6, 0.4, 0.25, 0.12)
"""Candidate length scales in strength."""
LOG_STEP_SCALES = (4.0, 2.0, 1.0, 0.5)
"""Candidate length scales in log2 of steps."""
CORRELATIONS = (0.9, 0.5)
"""Candidate correlations between profiles whose strengths cannot be compared."""
MAX_AVERAGED = 32
"""Candidates averaged, those of highest likelihood."""
MIN_RELATIVE_LIKELIHOOD = 0.01
"""Candidates less likely than this share of the highest likelihood are left out."""
MAX_FITTED = 150
"""Points the hyperparameters are fitted to, evenly spaced in the order of measuring."""
MIN_VARIANCE = 0.05
"""Added to the error variance of each point, in squared points: no score counts as exact."""


@dataclass(frozen=True)
class Smoother:
    """A fitted Gaussian process.

    Attributes:
        matrix: Maps measured scores to smoothed scores, [points, points].
        covariance: Posterior covariance of the smoothed scores, [points, points].
    """

    matrix: Floats
    covariance: Floats


def fit_smoother(points: Sequence[Point], scores: Floats, errors: Floats) -> Smoother:
    """Fit a Gaussian process to a role's scores.

    Args:
        points: The points.
        scores: Measured scores, in points, [points].
        errors: Covariance of their errors, in squared points, [points, points].
    """
    noise = errors + MIN_VARIANCE * np.eye(len(points))
    if len(points) < MIN_POINTS:
        return Smoother(np.eye(len(points)), noise)
    weights, candidates = _likely_candidates(points, scores, noise)
    distances = point_distances(points)
    smoothers = [_smoother(distances, candidate, noise) for candidate in candidates]
    matrix = sum(w * each.matrix for w, each in zip(weights, smoothers, strict=True))
    covariance = np.zeros_like(noise)
    for weight, each in zip(weights, smoothers, strict=True):
        # Candidates that disagree add to the uncertainty.
        gap = (each.matrix - matrix) @ scores
        covariance += weight * (each.covariance + np.outer(gap, gap))
    return Smoother(matrix, covariance)


def _smoother(distances: PointDistances, candidate: Sequence[float], noise: Floats) -> Smoother:
    """Make the smoother under one combination of hyperparameters, in the order of `_kernels`."""
    kernel = _kernels(distances, [(value,) for value in candidate])[0]
    ones = np.ones(len(noise))
    sides = np.column_stack([kernel, ones])
    *gains, weights = np.linalg.solve(kernel + noise, sides).T
    gain, constant = np.array(gains), np.outer(ones, weights / weights.sum())
    matrix = constant + gain @ (np.eye(len(noise)) - constant)
    return Smoother(matrix, kernel - gain @ kernel)


def is_on_curve(points: Sequence[Point]) -> Flags:
    """Whether a point's step and profile have `MIN_POINTS` strengths with the base, [points]."""
    counts = Counter((point.step, point.profile) for point in points if not point.is_base)
    has_base = any(point.is_base for point in points)
    curves = {curve for curve, count in counts.items() if count + has_base >= MIN_POINTS}
    flags = [p.is_base or (p.step, p.profile) in curves for p in points]
    return np.array(flags) & bool(curves)


def _likely_candidates(
    points: Sequence[Point], scores: Floats, noise: Floats
) -> tuple[Floats, list[tuple[float, ...]]]:
    """Return the likeliest hyperparameters and their weights, which sum to 1."""
    columns = np.unique(np.linspace(0, len(points) - 1, MAX_FITTED).round().astype(int))
    distances = point_distances([points[i] for i in columns])
    candidates = (
        AMPLITUDES,
        STRENGTH_SCALES,
        LOG_STEP_SCALES if distances.log_steps.any() else (1.0,),
        CORRELATIONS if distances.is_other_profile.any() else (1.0,),
    )
    covariances = _kernels(distances, candidates) + noise[np.ix_(columns, columns)]
    logs = _log_likelihoods(covariances, scores[columns])
    likelihoods = np.exp(logs - logs.max())
    order = np.argsort(-likelihoods, kind="stable")[:MAX_AVERAGED]
    kept = order[likelihoods[order] >= MIN_RELATIVE_LIKELIHOOD]
    combinations = list(product(*candidates))
    weights = likelihoods[kept] / likelihoods[kept].sum()
    return weights, [combinations[i] for i in kept]


def _kernels(distances: PointDistances, candidates: Sequence[Sequence[float]]) -> Floats:
    """Compute the kernel at the points per combination, [combinations, points, points].

    Args:
        distances: Distances of the points.
        candidates: Amplitudes, strength scales, log step scales and correlations of profiles.
    """
    amplitudes, strength_scales, step_scales, correlations = candidates
    by_strength = [_matern(distances.strength / scale) for scale in strength_scales]
    by_step = [np.exp(-0.5 * (distances.log_steps / scale) ** 2) for scale in step_scales]
    by_profile = [np.where(distances.is_other_profile, c, 1.0) for c in correlations]
    return np.array(
        [a**2 * x * y * z for a, x, y, z in product(amplitudes, by_strength, by_step, by_profile)]
    )


def _matern(distances: Floats) -> Floats:
    """Compute the Matern 5/2 kernel at distances in length scales."""
    scaled = np.sqrt(5) * distances
    covariance: Floats = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    return covariance


def _log_likelihoods(covariances: Floats, scores: Floats) -> Floats:
    """Compute log likelihoods, less a common term, under the best mean, [combinations]."""
    roots = np.linalg.cholesky(covariances)
    sides = np.stack([np.ones(len(scores)), scores], axis=1)
    ones, values = np.moveaxis(np.linalg.solve(roots, sides[None]), -1, 0)
    constants = (ones * values).sum(axis=1) / (ones**2).sum(axis=1)
    residuals = values - constants[:, None] * ones
    logs = np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
    likelihoods: Floats = -0.5 * (residuals**2).sum(axis=1) - logs
    return likelihoods
