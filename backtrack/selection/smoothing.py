"""Smoothing over the points: one Gaussian process a role, along alpha, steps and profiles. Numpy.

Scores of a role are taken as a constant plus a smooth function of the point plus noise of known
variance at each point, the bootstrap's. The function's covariance is the product of a Matern 5/2
in alpha, a squared exponential in log steps, and a constant between points of unlike profiles. Its
amplitude and lengths are those offered below under which the measured scores are most likely.
Given these the fitted values are linear in the measured ones, so that one matrix serves the
bootstrap samples as well.

NOTE: all points are in one fit, those off the curves too. A point kept as measured beside fitted
ones wins by luck: with a fit a curve the choice lay 0.7 points below the best of a recorded run
at the cost of a whole grid (tests/bench/replay.py, table miss), most of it from lucky points of
other steps.

NOTE: points share items, so callers give the variance of what is left once the mean over points
is taken off each sample: with losses the items' own difficulty is most of the noise, and would
flatten every curve. What is left is taken as independent; in replays of recorded runs the full
covariance of the noise chose worse points than its diagonal.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters 2, 4, 5.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from backtrack.selection.completing import spacing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

MIN_POINTS = 5
"""Fewer stay as measured; and strengths of one step and profile that make a curve."""
AMPLITUDES = (2.5, 5.0, 10.0, 20.0, 40.0)
"""In points."""
LENGTHS = (0.9, 0.6, 0.4, 0.25)
"""In alpha."""
DOUBLINGS = (4.0, 2.0, 1.0, 0.5)
"""Lengths in steps, as powers of two."""
LIKENESSES = (0.9, 0.5)
"""Correlation between unlike profiles."""
LEAST_VARIANCE = 0.05
"""Of a point's noise, in squared points: measured values never count as exact."""


@dataclass(frozen=True)
class Smoothing:
    """How scores at the points are smoothed.

    Attributes:
        matrix: Turns scores into fitted ones, [points, points].
        covariance: Of what is not known of the fitted ones, [points, points].
    """

    matrix: Floats
    covariance: Floats


def smooth(points: Sequence[Point], scores: Floats, errors: Floats) -> Smoothing:
    """Fit the points.

    Args:
        points: The points.
        scores: As measured, in points, [points].
        errors: Covariance of their errors, in squared points, [points, points].
    """
    noise = errors + LEAST_VARIANCE * np.eye(len(points))
    if len(points) < MIN_POINTS:
        return Smoothing(np.eye(len(points)), noise)
    kernels = _kernels(points)
    kernel = kernels[_log_likelihoods(kernels + noise, scores).argmax()]
    ones = np.ones(len(points))
    weights = np.linalg.solve(kernel + noise, ones)
    constant = np.outer(ones, weights / weights.sum())
    gain = np.linalg.solve(kernel + noise, kernel).T
    matrix = constant + gain @ (np.eye(len(points)) - constant)
    return Smoothing(matrix, kernel - gain @ kernel)


def is_on_curve(points: Sequence[Point]) -> Flags:
    """Points of a step and profile with enough strengths, the base being one of each, [points]."""
    counts = Counter((point.step, point.profile) for point in points if not point.is_base)
    has_base = any(point.is_base for point in points)
    curves = {curve for curve, count in counts.items() if count + has_base >= MIN_POINTS}
    flags = [p.is_base or (p.step, p.profile) in curves for p in points]
    return np.array(flags) & bool(curves)


def _kernels(points: Sequence[Point]) -> Floats:
    """Covariances of the function at the points, one a setting, [settings, points, points]."""
    far, later, _, is_unlike = spacing(points)
    by_alpha = [_matern(far / length) for length in LENGTHS]
    by_step = [np.exp(-0.5 * (later / d) ** 2) for d in (DOUBLINGS if later.any() else (1.0,))]
    likenesses = LIKENESSES if is_unlike.any() else (1.0,)
    by_profile = [np.where(is_unlike, likeness, 1.0) for likeness in likenesses]
    kernels: Floats = np.array(
        [a**2 * x * y * z for a, x, y, z in product(AMPLITUDES, by_alpha, by_step, by_profile)]
    )
    return kernels


def _matern(distances: Floats) -> Floats:
    """Covariance of order 5/2 at distances in lengths."""
    scaled = np.sqrt(5) * distances
    covariance: Floats = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    return covariance


def _log_likelihoods(covariances: Floats, scores: Floats) -> Floats:
    """Of the scores about their most likely constant, up to a constant; [settings]."""
    roots = np.linalg.cholesky(covariances)
    sides = np.stack([np.ones(len(scores)), scores], axis=1)
    ones, values = np.moveaxis(np.linalg.solve(roots, sides[None]), -1, 0)
    constants = (ones * values).sum(axis=1) / (ones**2).sum(axis=1)
    rest = values - constants[:, None] * ones
    logs = np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
    found: Floats = -0.5 * (rest**2).sum(axis=1) - logs
    return found
