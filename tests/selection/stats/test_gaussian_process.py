"""Smoothing over points, against the formulas and on simulated truth."""

from __future__ import annotations

import numpy as np
import pytest

from backtrack.point import Point
from backtrack.selection.stats.gaussian_process import (
    AMPLITUDES,
    MIN_VARIANCE,
    STRENGTH_SCALES,
    fit_smoother,
    is_on_curve,
)

ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)
GRID = (Point.base(), *(Point(step=10, alpha=alpha) for alpha in ALPHAS))
SCATTERED = (Point.base(), *(Point(step=10 * i) for i in range(1, 6)))


def fit(points, scores, variance=1.0, shares=None):
    scores = np.array(scores, dtype=float)
    shares = np.ones(len(points)) if shares is None else np.array(shares)
    return fit_smoother(points, scores, np.diag(variance / shares))


def by_the_book(scores, variance, length, amplitude):
    """Fitted values and log likelihood, each from a formula of its own."""
    x = np.array([0, *ALPHAS])
    gaps = np.sqrt(5) * np.abs(np.subtract.outer(x, x)) / length
    kernel = amplitude**2 * (1 + gaps + gaps**2 / 3) * np.exp(-gaps)
    covariance = kernel + (variance + MIN_VARIANCE) * np.eye(len(x))
    inverse = np.linalg.inv(covariance)
    mean = inverse.sum(axis=0) @ scores / inverse.sum()
    rest = scores - mean
    likelihood = -0.5 * rest @ inverse @ rest - 0.5 * np.linalg.slogdet(covariance)[1]
    return mean + kernel @ inverse @ rest, kernel - kernel @ inverse @ kernel, likelihood


def test_the_fit_is_the_posterior_averaged_over_the_candidates_by_likelihood():
    scores = np.array([0.0, 9, 13, 12, 15, 4])
    posteriors = [
        by_the_book(scores, 4.0, ln, amp) for ln in STRENGTH_SCALES for amp in AMPLITUDES
    ]
    likelihoods = np.exp([likelihood for *_, likelihood in posteriors])
    weights = np.where(likelihoods >= 0.01 * likelihoods.max(), likelihoods, 0.0)
    weights /= weights.sum()
    fitted = sum(w * mean for w, (mean, *_) in zip(weights, posteriors, strict=True))
    # Law of total variance: what each is unsure of, and how far they lie apart.
    covariance = sum(
        w * (each + np.outer(mean - fitted, mean - fitted))
        for w, (mean, each, _) in zip(weights, posteriors, strict=True)
    )
    found = fit(GRID, scores, variance=4.0)
    assert found.matrix @ scores == pytest.approx(fitted)
    assert found.covariance == pytest.approx(covariance, abs=1e-9)


def test_smoothing_moves_with_the_scores():
    scores = np.array([0.0, 9, 13, 12, 15, 4])
    matrix = fit(GRID, scores, variance=4.0).matrix
    assert matrix.sum(axis=1) == pytest.approx(np.ones(6))
    assert matrix @ (scores + 50) == pytest.approx(matrix @ scores + 50)


def test_a_curve_is_five_strengths_of_one_step_and_profile():
    assert is_on_curve(GRID[:5]).all()
    assert not is_on_curve(GRID[:4]).any()
    assert not is_on_curve(SCATTERED).any()
    assert is_on_curve((*GRID, Point(step=20))).tolist() == [True] * 6 + [False]
    other = tuple(point.model_copy(update={"profile": "safe"}) for point in GRID[3:])
    assert not is_on_curve((*GRID[:3], *other)).any()


def test_fewer_than_five_points_stay_as_measured():
    scores = np.array([0.0, 9, 3, 8])
    assert fit(GRID[:4], scores, variance=25.0).matrix @ scores == pytest.approx(scores)


@pytest.mark.parametrize("other", [{"step": 9}, {"profile": "safe"}])
def test_a_lucky_point_off_the_curve_is_drawn_to_it(other):
    scores = np.array([50.0, 58, 64, 66, 63, 57, 75])
    points = (*GRID, Point(step=10, alpha=0.6).model_copy(update=other))
    lucky = (fit(points, scores, variance=16.0).matrix @ scores)[-1]
    assert 64 < lucky < 73


def test_noise_is_smoothed_and_what_the_items_are_sure_of_is_not():
    rng = np.random.default_rng(0)
    points = (Point.base(), *(Point(step=10, alpha=i / 10) for i in range(1, 11)))
    truth = 60 + 25 * np.sin(3 * np.linspace(0, 1, 11))
    errors = []
    for _ in range(200):
        measured = truth + 4 * rng.standard_normal(11)
        matrix = fit(points, measured, variance=16.0).matrix
        errors.append(
            [((matrix @ measured - truth) ** 2).mean(), ((measured - truth) ** 2).mean()]
        )
    smoothed, raw = np.mean(errors, axis=0)
    assert smoothed < 0.5 * raw
    assert fit(points, truth, variance=0.01).matrix @ truth == pytest.approx(truth, abs=0.5)


def test_a_point_of_few_items_leans_on_its_neighbours():
    scores = np.array([0.0, 10, 20, 35, 10, 0])
    shares = [1, 1, 1, 0.1, 1, 1]
    leaning = fit(GRID, scores, variance=4.0, shares=shares).matrix @ scores
    plain = fit(GRID, scores, variance=4.0).matrix @ scores
    assert leaning[3] < plain[3] - 5


def test_errors_that_all_points_share_do_not_flatten_the_curve():
    truth = np.array([0.0, 10, 20, 30, 10, 0])
    errors = 90.0**2 * np.ones((6, 6)) + 0.1 * np.eye(6)
    fitted = fit_smoother(GRID, truth + 70, errors).matrix @ (truth + 70)
    assert fitted - fitted[0] == pytest.approx(truth, abs=0.5)


def test_a_profile_leans_on_one_that_does_nearly_the_same():
    near = Point(step=10, alpha=0.8, profile="depth(0.95,1)")
    unlike = near.model_copy(update={"profile": "depth(0,1)"})
    scores = np.array([0.0, 10, 20, 30, 40, 30, 60])
    fitted = {
        p: (fit((*GRID, p), scores, variance=25.0).matrix @ scores)[-1] for p in (near, unlike)
    }
    assert fitted[near] < 50 < 54 < fitted[unlike]


def test_the_hyperparameters_of_many_points_are_fitted_to_some():
    points = (
        Point.base(),
        *(Point(step=s, alpha=a / 20) for s in range(1, 21) for a in range(1, 21)),
    )
    truth = np.array([40 * np.sin(2 * p.alpha) * np.log(1 + p.step) for p in points])
    rng = np.random.default_rng(0)
    scores = truth + 4 * rng.standard_normal(len(points))
    fitted = fit(points, scores, variance=16.0).matrix @ scores
    assert np.std(fitted - truth) < 0.4 * 4
