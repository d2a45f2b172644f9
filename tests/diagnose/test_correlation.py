"""Correlations against SciPy, and their intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from backtrack.diagnose.correlation import pearson, spearman
from backtrack.records import Interval


def known(interval: Interval | None) -> Interval:
    assert interval is not None
    return interval


def test_both_agree_with_scipy_ties_included():
    generator = np.random.default_rng(0)
    sample = generator.normal(size=40)
    left, right = sample.tolist(), np.round(sample + generator.normal(size=40), 1).tolist()
    ours, theirs = known(pearson(left, right)), stats.pearsonr(left, right)
    assert ours.estimate == pytest.approx(theirs.statistic)
    low, high = theirs.confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-6)
    ranked = known(spearman(left, right)).estimate
    assert ranked == pytest.approx(stats.spearmanr(left, right).statistic)


@pytest.mark.parametrize("correlate", [pearson, spearman])
def test_intervals_have_their_nominal_coverage(correlate):
    generator = np.random.default_rng(1)
    truth = 0.6 if correlate is pearson else 6 / np.pi * np.arcsin(0.6 / 2)
    covered = 0
    for _ in range(600):
        pairs = generator.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=12)
        interval = correlate(*pairs.T.tolist())
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / 600 <= 0.98


def test_too_few_or_constant_numbers_have_no_correlation():
    assert pearson([1, 2, 3], [1, 2, 3]) is None
    assert spearman([1, 1, 1, 1], [1, 2, 3, 4]) is None
    perfect = known(spearman([1, 2, 3, 4], [10, 20, 30, 40]))
    assert (perfect.estimate, perfect.low, perfect.high) == pytest.approx((1, 1, 1))
