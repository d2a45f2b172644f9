"""Smooth a role's scores over the points with a Gaussian process. Pure numpy.

Measured scores of a role are modelled as a constant plus a smooth function of the point plus
errors of known covariance, that of score estimates over a sample of items (see `estimates`). The
kernel is the product of a Matern 5/2 in strength (see `distances`), a squared exponential in log
steps, and a constant between profiles whose strengths cannot be compared. Amplitude and length
scales are the candidates below with the highest likelihood. Given these, smoothed scores are
linear in the measured ones, so one matrix smooths the bootstrap samples as well.

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

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

MIN_POINTS = 5
"""Fewer points are not smoothed; also the strengths of one step and profile that make a curve."""
AMPLITUDES = (2.5, 5.0, 10.0, 20.0, 40.0)
"""Candidate amplitudes, in points."""
STRENGTH_SCALES = (0.9, 0.6, 0.4, 0.25)
"""Candidate length scales in strength."""
LOG_STEP_SCALES = (4.0, 2.0, 1.0, 0.5)
"""Candidate length scales in log2 of steps."""
CORRELATIONS = (0.9, 0.5)
"""Candidate correlations between profiles whose strengths cannot be compared."""
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
    kernel = _kernels(points, [(value,) for value in _most_likely(points, scores, noise)])[0]
    ones = np.ones(len(points))
    weights = np.linalg.solve(kernel + noise, ones)
    constant = np.outer(ones, weights / weights.sum())
    gain = np.linalg.solve(kernel + noise, kernel).T
    matrix = constant + gain @ (np.eye(len(points)) - constant)
    return Smoother(matrix, kernel - gain @ kernel)


def is_on_curve(points: Sequence[Point]) -> Flags:
    """Whether a point's step and profile have `MIN_POINTS` strengths with the base, [points]."""
    counts = Counter((point.step, point.profile) for point in points if not point.is_base)
    has_base = any(point.is_base for point in points)
    curves = {curve for curve, count in counts.items() if count + has_base >= MIN_POINTS}
    flags = [p.is_base or (p.step, p.profile) in curves for p in points]
    return np.array(flags) & bool(curves)


def _most_likely(points: Sequence[Point], scores: Floats, noise: Floats) -> tuple[float, ...]:
    """Return the hyperparameters of highest likelihood, in the order of `_kernels`."""
    columns = np.unique(np.linspace(0, len(points) - 1, MAX_FITTED).round().astype(int))
    fitted = [points[i] for i in columns]
    candidates = (
        AMPLITUDES,
        STRENGTH_SCALES,
        LOG_STEP_SCALES if len({point.step for point in fitted}) > 1 else (1.0,),
        CORRELATIONS if point_distances(fitted).is_other_profile.any() else (1.0,),
    )
    covariances = _kernels(fitted, candidates) + noise[np.ix_(columns, columns)]
    best = int(_log_likelihoods(covariances, scores[columns]).argmax())
    return list(product(*candidates))[best]


def _kernels(points: Sequence[Point], candidates: Sequence[Sequence[float]]) -> Floats:
    """Compute the kernel at the points per combination, [combinations, points, points].

    Args:
        points: The points.
        candidates: Amplitudes, strength scales, log step scales and correlations of profiles.
    """
    distances = point_distances(points)
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
