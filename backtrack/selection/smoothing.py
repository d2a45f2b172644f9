"""Smoothing along alpha: a Gaussian process on each curve of the points. Pure numpy.

A curve's scores, of one role, are taken as a constant plus a smooth function of alpha plus noise
of known variance at each point, the bootstrap's. The function has a Matern 5/2 covariance; its
length and amplitude are those of `LENGTHS` and `AMPLITUDES` under which the measured scores are
most likely. Given these the fitted values are linear in the measured ones, so that one matrix
serves the bootstrap samples as well.

NOTE: noise is taken as independent though points share items. What all points share moves every
fitted value alike and leaves differences as they are; and in replays of recorded runs
(tests/bench/replay.py) the full covariance of the noise chose worse points than its diagonal.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters 2, 4, 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point

    Floats = NDArray[np.float64]

MIN_ALPHAS = 5
LENGTHS = (0.9, 0.6, 0.4, 0.25)
"""In alpha."""
AMPLITUDES = (2.5, 5.0, 10.0, 20.0, 40.0)
"""In points."""
LEAST_VARIANCE = 0.05
"""Of a point's noise, in squared points: measured values never count as exact."""


@dataclass(frozen=True)
class Curve:
    """Points of one step and profile, the base included.

    Attributes:
        columns: Where its points stand among all.
        fit: Matrix that turns their scores into fitted ones, [len(columns), len(columns)].
        covariance: Of what is not known of the fitted ones, of the same shape.
    """

    columns: tuple[int, ...]
    fit: Floats
    covariance: Floats


@dataclass(frozen=True)
class Smoothing:
    """How scores at the points are smoothed.

    Attributes:
        curves: What is smoothed.
        matrix: Turns scores into smoothed ones, [points, points]. A point on several curves, as
            the base is, takes the mean of its fitted values; a point on none keeps its own.
    """

    curves: tuple[Curve, ...]
    matrix: Floats


def smooth(
    points: Sequence[Point], scores: Floats, variances: Floats, shares: Floats
) -> Smoothing:
    """Fit a curve to each step and profile with enough strengths; the base lies on all of them.

    Args:
        points: The points.
        scores: As measured, in points, [points].
        variances: Of their noise, in squared points, [points].
        shares: Of the items each was measured on, [points].
    """
    curves: list[Curve] = []
    for columns in _groups(points):
        alphas = np.array([points[i].alpha for i in columns])
        noise = _noise(variances[columns], shares[columns])
        curves.append(Curve(tuple(columns), *_fit(alphas, scores[columns], noise)))
    return Smoothing(tuple(curves), _matrix(len(points), curves))


def _groups(points: Sequence[Point]) -> list[list[int]]:
    """Columns of the base and of each step and profile with enough strengths."""
    base = [i for i, point in enumerate(points) if point.is_base]
    groups: dict[tuple[int, str], list[int]] = {}
    for i, point in enumerate(points):
        if not point.is_base:
            groups.setdefault((point.step, point.profile), []).append(i)
    return [base + members for members in groups.values() if len(base + members) >= MIN_ALPHAS]


def _noise(variances: Floats, shares: Floats) -> Floats:
    """Variances drawn half way to their mean for the same items: few items all right show none."""
    whole = variances * shares
    noise: Floats = (whole + whole.mean()) / 2 / shares + LEAST_VARIANCE
    return noise


def _matrix(num_points: int, curves: Sequence[Curve]) -> Floats:
    matrix = np.zeros((num_points, num_points))
    times = np.zeros(num_points)
    for curve in curves:
        columns = np.array(curve.columns)
        matrix[np.ix_(columns, columns)] += curve.fit
        times[columns] += 1
    alone = times == 0
    matrix[alone, alone] = 1
    times[alone] = 1
    means: Floats = matrix / times[:, None]
    return means


def _fit(alphas: Floats, scores: Floats, variances: Floats) -> tuple[Floats, Floats]:
    """The posterior at the points: its mean as a matrix on what was measured, its covariance."""
    noise = np.diag(variances)
    gaps = np.abs(alphas[:, None] - alphas[None, :])
    kernels = [a**2 * _matern(gaps / length) for length, a in product(LENGTHS, AMPLITUDES)]
    kernel = max(kernels, key=lambda k: _log_likelihood(k + noise, scores))
    ones = np.ones(len(alphas))
    weights = np.linalg.solve(kernel + noise, ones)
    constant = np.outer(ones, weights / weights.sum())
    rest = np.eye(len(alphas)) - constant
    gain = kernel @ np.linalg.solve(kernel + noise, np.eye(len(alphas)))
    return constant + gain @ rest, kernel - gain @ kernel


def _matern(distances: Floats) -> Floats:
    """Covariance of order 5/2 at distances in lengths."""
    scaled = np.sqrt(5) * distances
    covariance: Floats = (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
    return covariance


def _log_likelihood(covariance: Floats, scores: Floats) -> float:
    """Of the scores about their most likely constant, up to a constant of its own."""
    root = np.linalg.cholesky(covariance)
    ones, values = np.linalg.solve(root, np.stack([np.ones(len(scores)), scores])[..., None])
    rest = values - ones * (ones.T @ values) / (ones.T @ ones)
    return float(-0.5 * (rest.T @ rest).item() - np.log(np.diag(root)).sum())
