"""Smoothing over the points: one Gaussian process a role, in strengths and steps. Numpy.

Scores of a role are taken as a constant plus a smooth function of the point plus errors of known
covariance, those of means over a sample of items (see `completing`). The function's covariance is
the product of a Matern 5/2 in strength (see `spacing`), a squared exponential in log steps, and a
constant between profiles of which the strengths cannot be compared. Its amplitude and lengths are
those offered below under which the measured scores are most likely. Given these the fitted values
are linear in the measured ones, so that one matrix serves the bootstrap samples as well.

NOTE: all points are in one fit, those off the curves too. A point kept as measured beside fitted
ones wins by luck: with a fit a curve the choice lay 0.7 points below the best of a recorded run
at the cost of a whole grid (tests/bench/replay.py, table miss), most of it from lucky points of
other steps.

NOTE: points share items, so errors go together: with losses the items' own difficulty is most of
them, and taken as independent it would flatten every curve.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters 2, 4, 5.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from backtrack.selection.stats.distances import spacing

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
"""In strength."""
DOUBLINGS = (4.0, 2.0, 1.0, 0.5)
"""Lengths in steps, as powers of two."""
LIKENESSES = (0.9, 0.5)
"""Correlation between profiles whose strengths cannot be compared."""
MOST_FITTED = 150
"""Points that amplitude and lengths are fitted to, evenly among all in the order of measuring."""
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
    kernel = _kernels(points, [(each,) for each in _likeliest(points, scores, noise)])[0]
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


def _likeliest(points: Sequence[Point], scores: Floats, noise: Floats) -> tuple[float, ...]:
    """Amplitude, length, doublings and likeness under which the scores are most likely."""
    some = np.unique(np.linspace(0, len(points) - 1, MOST_FITTED).round().astype(int))
    seen = [points[i] for i in some]
    offered = (
        AMPLITUDES,
        LENGTHS,
        DOUBLINGS if len({point.step for point in seen}) > 1 else (1.0,),
        LIKENESSES if spacing(seen).is_other_profile.any() else (1.0,),
    )
    covariances = _kernels(seen, offered) + noise[np.ix_(some, some)]
    best = int(_log_likelihoods(covariances, scores[some]).argmax())
    return list(product(*offered))[best]


def _kernels(points: Sequence[Point], offered: Sequence[Sequence[float]]) -> Floats:
    """Covariances of the function at the points, one a setting, [settings, points, points].

    Args:
        points: The points.
        offered: Amplitudes, lengths, doublings and likenesses.
    """
    apart = spacing(points)
    amplitudes, lengths, doublings, likenesses = offered
    by_alpha = [_matern(apart.far / length) for length in lengths]
    by_step = [np.exp(-0.5 * (apart.later / doubling) ** 2) for doubling in doublings]
    by_profile = [np.where(apart.is_other_profile, likeness, 1.0) for likeness in likenesses]
    return np.array(
        [a**2 * x * y * z for a, x, y, z in product(amplitudes, by_alpha, by_step, by_profile)]
    )


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
