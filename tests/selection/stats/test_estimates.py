"""Means of points measured on some of the items, against formulas and simulated truth."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from backtrack.point import Point
from backtrack.selection.stats.bootstrap import item_weights
from backtrack.selection.stats.estimates import (
    cluster_scores,
    estimate_means,
    fit_correlations,
)
from backtrack.selection.stats.gaussian_process import fit_smoother

POINTS = (Point.base(), *(Point(step=10, alpha=i / 5) for i in range(1, 6)))


def correlations(points=POINTS, length=0.35):
    alphas = np.array([point.alpha for point in points])
    return np.exp(-np.abs(alphas[:, None] - alphas) / length)


def draw(rng, num_items, means=0.0, points=POINTS, length=0.35):
    """Scores with the correlations of `correlations`."""
    root = np.linalg.cholesky(correlations(points, length))
    return np.asarray(means)[..., None] + root @ rng.standard_normal((len(points), num_items))


def hide(scores, counts):
    """Keep the first items of each point."""
    scores = scores.copy()
    for row, count in zip(scores, counts, strict=True):
        row[count:] = np.nan
    return scores


def test_where_nothing_is_missing_means_are_plain():
    scores = draw(np.random.default_rng(0), 50)
    estimates = estimate_means(scores, correlations())
    assert estimates.means == pytest.approx(scores.mean(axis=1), abs=1e-12)


def test_a_point_measured_on_all_items_keeps_its_plain_mean():
    scores = draw(np.random.default_rng(0), 80)
    means = estimate_means(hide(scores, [80, 10, 80, 20, 40, 80]), correlations()).means
    assert means[[0, 2, 5]] == pytest.approx(scores.mean(axis=1)[[0, 2, 5]])


def test_with_two_points_the_mean_is_the_regression_estimator():
    scores = np.array([[1.0, 2, 3, 4, 5, 9], [2, 2, 4, np.nan, np.nan, np.nan]])
    points = POINTS[:2]
    modelled = correlations(points)
    estimates = estimate_means(scores, modelled)
    deviations = np.sqrt(np.diag(estimates.covariance)[0] * 6)
    assert estimates.means[0] == pytest.approx(4)
    slope = (estimates.means[1] - 8 / 3) / (4 - 2)
    assert 0 < slope < modelled[0, 1]
    assert deviations > 1.5


def test_a_mean_on_some_of_the_items_is_corrected_by_points_with_more():
    """Half the items are hard; a point measured on too few of them seems too good."""
    hard = np.r_[np.zeros(40), np.ones(20), np.zeros(160), np.ones(180)].astype(bool)
    rng = np.random.default_rng(0)
    rows = np.array([rng.random(400) < np.where(hard, 0.1, 0.9) for _ in POINTS]).astype(float)
    scores = hide(rows, [400, 400, 60, 400, 400, 400])
    naive, truth = np.nanmean(scores[2]), rows[2].mean()
    means = estimate_means(scores, fit_correlations(POINTS, [scores])).means
    assert abs(means[2] - truth) < 0.5 * abs(naive - truth)


def test_errors_are_as_large_as_said():
    counts = [100, 12, 12, 25, 50, 100]
    errors, said = [], []
    for seed in range(400):
        scores = hide(draw(np.random.default_rng(seed), 100), counts)
        estimates = estimate_means(scores, correlations())
        errors.append(estimates.means)
        said.append(estimates.covariance)
    seen, meant = np.cov(np.array(errors).T), np.mean(said, axis=0)
    assert np.diag(meant) == pytest.approx(np.diag(seen), rel=0.25)
    assert meant == pytest.approx(seen, abs=0.02)


def test_few_items_give_better_estimates_than_their_own_mean():
    ours, plain = [], []
    for seed in range(200):
        scores = hide(draw(np.random.default_rng(seed), 100), [100, 12, 12, 100, 12, 100])
        ours.append(estimate_means(scores, fit_correlations(POINTS, [scores])).means)
        plain.append(np.nanmean(scores, axis=1))
    few = [1, 2, 4]
    assert np.std(ours, axis=0)[few].max() < 0.9 * np.std(plain, axis=0)[few].min()


def test_samples_spread_as_the_errors_do():
    scores = hide(draw(np.random.default_rng(3), 200), [200, 50, 100, 200, 50, 200])
    estimates = estimate_means(scores, correlations())
    weights = item_weights(tuple(f"a/{i}" for i in range(200)), 0, "x", 4000)
    samples = estimates.resampled_means(weights)
    assert samples.mean(axis=0) == pytest.approx(estimates.means, abs=0.01)
    assert samples.var(axis=0) == pytest.approx(np.diag(estimates.covariance), rel=0.4)


def test_intervals_of_few_items_hold():
    covered = []
    names = tuple(f"a/{i}" for i in range(200))
    for seed in range(200):
        rng = np.random.default_rng(seed)
        rates = rng.random(200)
        scores = (rng.random((6, 200)) < rates).astype(float)
        scores = scores[:, rng.permutation(200)]
        scores[2, 50:] = np.nan
        estimates = estimate_means(scores, fit_correlations(POINTS, [scores]))
        samples = estimates.resampled_means(item_weights(names, seed, "x", 400))
        low, high = np.quantile(samples[:, 2], (0.025, 0.975))
        covered.append(low <= 0.5 <= high)
    assert 0.90 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("length", [0.2, 1.0])
def test_the_correlations_are_recovered(length):
    rng = np.random.default_rng(0)
    scores = [hide(draw(rng, 200, length=length), [200, 50, 100, 200, 100, 200]) for _ in range(3)]
    assert fit_correlations(POINTS, scores) == pytest.approx(correlations(length=length), abs=0.15)


def test_points_of_equal_strengths_measured_separately_do_no_harm():
    twins = (*POINTS, POINTS[3].model_copy(update={"profile": "depth(1,1)"}))
    rng = np.random.default_rng(0)
    rates = np.array([0.1, 0.4, 0.7, 0.8, 0.7, 0.6, 0.3])[:, None]
    scores = (rng.random((7, 200)) < rates).astype(float)
    scores[1, 50:] = np.nan
    estimates = estimate_means(scores, fit_correlations(twins, [scores]))
    fitted = fit_smoother(twins, 100 * estimates.means, 1e4 * estimates.covariance).matrix @ (
        100 * estimates.means
    )
    assert 0 < fitted.min() < fitted.max() < 90


def test_answers_sampled_at_each_point_lower_the_correlations():
    rng = np.random.default_rng(0)
    scores = [draw(rng, 400) + 1.5 * rng.standard_normal((6, 400)) for _ in range(3)]
    estimates = fit_correlations(POINTS, scores)
    assert estimates[0] == pytest.approx([1, *(correlations()[0, 1:] / (1 + 1.5**2))], abs=0.06)


def test_a_correlation_shared_by_all_points_is_recovered():
    """As with losses: nearly all is the items' own difficulty."""
    rng = np.random.default_rng(0)
    scores = draw(rng, 100) + 9 * rng.standard_normal(100)
    assert fit_correlations(POINTS, [scores]).min() > 0.95


def test_few_items_all_right_do_not_count_as_certain():
    rng = np.random.default_rng(0)
    scores = (rng.random((6, 100)) < 0.6).astype(float)
    scores[1, :8], scores[1, 8:] = 1.0, np.nan
    assert estimate_means(scores, correlations()).covariance[1, 1] > 0.1 * 0.24 / 8


def test_missing_items_need_not_be_nested():
    scores = draw(np.random.default_rng(0), 60)
    scores[1, :30], scores[2, 30:], scores[4, ::2] = np.nan, np.nan, np.nan
    estimates = estimate_means(scores, correlations())
    assert np.isfinite(estimates.means).all()
    assert (np.linalg.eigvalsh(estimates.covariance) > 0).all()
    assert estimates.means[[0, 3, 5]] == pytest.approx(scores[[0, 3, 5]].mean(axis=1))


def test_an_objective_everybody_solves_does_no_harm():
    scores = hide(np.ones((6, 40)), [40, 10, 40, 10, 40, 40])
    estimates = estimate_means(scores, fit_correlations(POINTS, [scores]))
    assert estimates.means == pytest.approx(np.ones(6))
    assert np.abs(estimates.covariance).max() < 1e-6


def test_two_points_alone_can_be_estimated():
    scores = hide(draw(np.random.default_rng(0), 20, points=POINTS[:2]), [20, 5])
    assert np.isfinite(estimate_means(scores, fit_correlations(POINTS[:2], [scores])).means).all()


def test_errors_of_clustered_items_are_as_large_as_said():
    """Nine tenths of a score are shared by five items; the second and third point lack some."""
    clusters = [f"a/{i // 5 * 5:03d}" for i in range(200)]
    errors, said = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        shared = draw(rng, 40).repeat(5, axis=1)
        rows = np.sqrt(0.9) * shared + np.sqrt(0.1) * draw(rng, 200)
        scores = hide(rows, [200, 50, 50, 200, 200, 200])
        by_cluster = cluster_scores(scores, clusters)
        estimates = estimate_means(scores, fit_correlations(POINTS, [by_cluster]), by_cluster)
        errors.append(estimates.means)
        said.append(np.diag(estimates.covariance))
    seen, meant = np.var(errors, axis=0), np.mean(said, axis=0)
    assert meant == pytest.approx(seen, rel=0.3)
    assert seen[0] == pytest.approx(0.92 / 40, rel=0.2)


def test_items_without_clusters_are_as_they_are():
    scores = draw(np.random.default_rng(0), 20)
    assert cluster_scores(scores, [f"a/{i}" for i in range(20)]) is scores


def test_a_bump_of_small_rates_is_not_taken_for_an_error_of_all_points():
    """With the points' own deviations its top was smoothed from 16% to 11%."""
    rates = np.array([0.06, 0.1, 0.14, 0.16, 0.16, 0.12, 0.08, 0.05, 0.03, 0.02, 0.02])
    points = [Point.base(), *(Point(step=40, alpha=i / 10) for i in range(1, 11))]
    limits = [NormalDist().inv_cdf(1 - rate) for rate in rates]
    tops = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        ability = (rng.standard_normal(80) + rng.standard_normal((11, 80))) / np.sqrt(2)
        scores = (ability > np.array(limits)[:, None]).astype(float)
        estimates = estimate_means(scores, fit_correlations(points, [scores])).scaled(100, 0)
        smoother = fit_smoother(points, estimates.means, estimates.covariance)
        tops.append((smoother.matrix @ estimates.means)[3:5].mean())
    assert np.mean(tops) == pytest.approx(16, abs=2.5)
