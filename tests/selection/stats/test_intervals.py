"""Intervals of scores and of differences, against tables, formulas and simulated truth."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from backtrack.records import Interval
from backtrack.selection.stats.bootstrap import resample_means
from backtrack.selection.stats.intervals import (
    Part,
    combine,
    degrees_of_freedom,
    difference_interval,
    percentile_interval,
    rate_interval,
    reserve,
    student_quantile,
)
from tests.bench.coverage_cells import Cell, Found


@pytest.mark.parametrize(
    ("num_compared", "num_free", "quantile"),
    [(1, 10**9, 1.9600), (2, 10**9, 2.2414), (1, 149, 1.9760), (2, 30, 2.3596), (1, 10, 2.2281)],
)
def test_the_quantile_is_student_s_of_a_shared_level(num_compared, num_free, quantile):
    assert student_quantile(num_free, num_compared) == pytest.approx(quantile, abs=0.005)


def test_a_percentile_interval_reaches_as_far_as_its_quantile_says():
    samples = np.random.default_rng(0).standard_normal(1_000_000)
    found = percentile_interval(0.0, samples, 2.5)
    assert (found.low, found.high) == pytest.approx((-2.5, 2.5), abs=0.02)


def test_a_rate_has_the_interval_of_agresti_and_coull():
    """30 of 100, of many clusters: centre (30 + 1.92) / (100 + 3.84)."""
    samples = np.array([0.3 - np.sqrt(0.21 / 100), 0.3 + np.sqrt(0.21 / 100)])
    found = rate_interval(0.3, samples, 100, 10**9)
    assert (found.low, found.high) == pytest.approx((0.2187, 0.3961), abs=1e-4)


def test_items_that_are_all_wrong_leave_room_for_a_rate_above_zero():
    found = rate_interval(0.0, np.zeros(100), 50, 49)
    assert found.low == 0
    assert 0.07 < found.high < 0.1
    assert rate_interval(1.0, np.ones(100), 50, 49).low == pytest.approx(1 - found.high)


def drawn(rate: float, num_items: int, per_cluster: int, seed: int):
    """Right and wrong answers; items of a cluster share three fifths of their difficulty."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((num_items // per_cluster, 1))
    own = rng.standard_normal((num_items // per_cluster, per_cluster))
    share = 0.6 if per_cluster > 1 else 0.0
    latent = np.sqrt(share) * shared + np.sqrt(1 - share) * own
    return (latent < NormalDist().inv_cdf(rate)).astype(float).reshape(1, -1)


@pytest.mark.parametrize("per_cluster", [1, 5])
@pytest.mark.parametrize("num_items", [50, 100, 200])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.5, 0.99])
def test_intervals_of_rates_cover_them(rate: float, num_items: int, per_cluster: int):
    """The percentile interval covers a rate of 0.01 in 40, 63 and 87 of 100 cases."""
    clusters = [f"a/{i // per_cluster:03d}" for i in range(num_items)]
    num_covered = 0
    for seed in range(300):
        scores = drawn(rate, num_items, per_cluster, seed)
        samples = resample_means(scores, clusters, seed=seed % 4, name="x", num_resamples=500)
        found = rate_interval(
            float(scores.mean()), samples[:, 0], num_items, num_items // per_cluster - 1
        )
        num_covered += found.low <= rate <= found.high
    assert num_covered >= 0.9 * 300


def test_intervals_are_combined_by_the_squares_of_their_reach():
    parts = [
        (2.0, Interval(estimate=1, low=0, high=3)),
        (-1.0, Interval(estimate=5, low=1, high=6)),
    ]
    found = combine(-3.0, parts)
    assert found.low == pytest.approx(-3 - np.hypot(2, 1))
    assert found.high == pytest.approx(-3 + np.hypot(4, 4))


def test_answers_that_never_differ_leave_room_for_a_difference():
    gaps = np.zeros(50)
    least = reserve(gaps, 1.0)
    found = difference_interval([Part(0.0, np.zeros(100), least, 49)])
    assert found.high == -found.low == pytest.approx(2.01 * np.sqrt(2) / 52, rel=0.01)
    assert reserve(gaps, None) == 0
    assert reserve(np.array([0.5, -0.1, 0.0]), 1.0) == 2 * (0.5 / 5) ** 2


def test_a_difference_ends_where_none_can_be_larger():
    samples = np.linspace(0.5, 1.0, 100)
    parts = [Part(0.9, samples, reserve(np.array([0.9]), 1.0), 9, largest=1.0)]
    found = difference_interval(parts)
    assert found.high == 1.0
    assert -1.0 < found.low < 0.5
    assert difference_interval([*parts, Part(0.0, samples, 0.0, 9)]).high > 1.0


def test_a_part_of_few_items_counts_by_its_share_of_the_variance():
    few, many = (np.array([-1.0, 1.0]) * s for s in (3.0, 1.0))
    parts = [Part(0.0, few, 0.0, 14), Part(0.0, many, 0.0, 199)]
    assert degrees_of_freedom(parts) == pytest.approx(100 / (81 / 14 + 1 / 199))


TWO_ROLES = (("target", 100), ("general", 100))
FEW_BESIDE_MANY = (("aime", 15), ("gsm8k", 200), ("general", 200))


@pytest.mark.parametrize(
    "cell",
    [
        Cell((0.3, 0.4, 0.45), TWO_ROLES, 5),
        Cell((0.3, 0.3, 0.3), TWO_ROLES, 5),
        Cell((0.01, 0.03, 0.05), TWO_ROLES),
        Cell((0.3, 0.4, 0.45), FEW_BESIDE_MANY),
        Cell((0.3, 0.3, 0.3), FEW_BESIDE_MANY),
    ],
)
def test_intervals_of_a_report_hold(cell: Cell):
    found = Found.of(cell, 100)
    assert min(found.own, found.gaps) >= 90
    if len(set(cell.rates)) == 1:
        assert found.claims <= 10


def test_items_of_a_cluster_counted_one_by_one_claim_too_much():
    found = Found.of(Cell((0.3, 0.3, 0.3), TWO_ROLES, 5), 100, knows_clusters=False)
    assert found.gaps < 90
    assert found.claims > 10
