from __future__ import annotations

import numpy as np
import pytest

from backtrack.records import Interval
from backtrack.selection.stats.bootstrap import (
    chances_best,
    deviation,
    interval,
    items_to_settle,
    pooled_deviation,
    resample_means,
)


def ids(**sizes: int) -> list[str]:
    return [f"{name}/{i}" for name, size in sizes.items() for i in range(size)]


def test_bootstrap_variance_of_a_mean_is_the_unbiased_one():
    """Also for strata of a few items, where drawing as many as there are would give too little."""
    rng = np.random.default_rng(0)
    items = ids(a=3, b=4, c=5)
    scores = rng.normal(size=(1, 12))
    parts = [scores[0, :3], scores[0, 3:7], scores[0, 7:]]
    expected = sum(len(part) * part.var(ddof=1) for part in parts) / 12**2
    found = resample_means(scores, items, seed=1, name="x", num_resamples=200_000).var()
    assert found == pytest.approx(expected, rel=0.02)


def test_bootstrap_means_centre_on_the_means():
    scores = np.random.default_rng(0).random((2, 40))
    found = resample_means(scores, ids(a=30, b=10), seed=1, name="x", num_resamples=100_000)
    assert found.mean(axis=0) == pytest.approx(scores.mean(axis=1), abs=1e-3)


def test_strata_of_one_item_are_drawn_together():
    scores = np.random.default_rng(0).normal(size=(1, 20))
    alone = [f"task{i}/0" for i in range(20)]
    found = resample_means(scores, alone, seed=1, name="x", num_resamples=100_000).var()
    assert found == pytest.approx(scores.var(ddof=1) / 20, rel=0.03)


def test_a_lone_item_beside_a_whole_stratum_is_drawn_with_it():
    scores = np.array([[0.0, 0.0, 0.0, 1.0]])
    found = resample_means(scores, [*ids(a=3), "b/0"], seed=1, name="x")
    assert found.std() > 0


def test_differences_between_strata_are_no_noise():
    scores = np.array([[0.0] * 10 + [1.0] * 10])
    assert resample_means(scores, ids(a=10, b=10), seed=1, name="x").std() < 1e-12


def test_the_same_items_are_drawn_at_every_point():
    scores = np.random.default_rng(0).random((1, 30))
    both = resample_means(np.vstack([scores, scores + 0.25]), ids(a=30), seed=1, name="x")
    assert np.allclose(both[:, 1] - both[:, 0], 0.25)


def test_pairing_makes_a_difference_much_surer():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=200)
    scores = np.array([difficulty + 0.3 * rng.normal(size=200) for _ in range(2)])
    samples = resample_means(scores, ids(a=200), seed=1, name="x")
    apart = resample_means(scores, ids(a=200), seed=1, name="y")
    paired = (samples[:, 0] - samples[:, 1]).std()
    unpaired = (samples[:, 0] - apart[:, 1]).std()
    assert paired < unpaired / 2


def test_objectives_are_drawn_independently():
    scores = np.random.default_rng(0).random((1, 50))
    one = resample_means(scores, ids(a=50), seed=1, name="x")[:, 0]
    other = resample_means(scores, ids(a=50), seed=1, name="y")[:, 0]
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_the_bootstrap_does_not_depend_on_the_order_of_items():
    scores = np.random.default_rng(0).random((2, 30))
    items = ids(a=20, b=10)
    order = np.random.default_rng(1).permutation(30)
    shuffled = resample_means(scores[:, order], [items[i] for i in order], seed=1, name="x")
    assert np.allclose(resample_means(scores, items, seed=1, name="x"), shuffled)


def simulated_intervals(num_items: int, gap: float) -> list[Interval]:
    """Of the share of right answers at two points, to the same questions; `gap` is the truth."""
    rng = np.random.default_rng(5)
    crowd = rng.random(1_000_000) + 0.2 * rng.normal(size=1_000_000)
    bars = np.quantile(crowd, (0.5, 0.5 + gap))[:, None]
    items = ids(a=num_items // 2, b=num_items - num_items // 2)
    found: list[Interval] = []
    for seed in range(400):
        difficulty = rng.random(num_items) + 0.2 * rng.normal(size=(2, num_items))
        scores = (difficulty < bars).astype(float)
        samples = resample_means(scores, items, seed=seed, name="x", num_resamples=500)
        found.append(interval(0.0, samples[:, 1] - samples[:, 0]))
    return found


@pytest.mark.parametrize(("num_items", "least"), [(30, 0.89), (200, 0.92)])
def test_intervals_of_paired_differences_cover_the_truth(num_items: int, least: float):
    found = simulated_intervals(num_items, gap=0.1)
    assert least <= np.mean([each.low <= 0.1 <= each.high for each in found]) <= 0.98


@pytest.mark.parametrize("num_items", [15, 100])
def test_a_difference_that_is_none_is_rarely_claimed(num_items: int):
    found = simulated_intervals(num_items, gap=0.0)
    assert np.mean([each.low > 0 or each.high < 0 for each in found]) < 0.08


def test_an_interval_is_cut_from_both_tails():
    found = interval(0.5, np.linspace(0, 1, 1001))
    assert (found.estimate, found.low, found.high) == pytest.approx((0.5, 0.025, 0.975))


def test_chances_of_being_best_share_a_draw():
    utilities = np.array([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert chances_best(utilities) == pytest.approx([(0.5 + 1 + 1 / 3) / 4, 11 / 24, 1 / 12])


def test_items_to_settle_are_those_of_the_formula():
    assert items_to_settle(0.45, 0.05) == 635
    assert items_to_settle(0.45, -0.02) == 3969


def test_no_number_of_items_settles_no_difference():
    assert items_to_settle(0.45, 0.0) is None


def test_that_many_items_see_the_difference_four_times_in_five():
    rng = np.random.default_rng(2)
    num = items_to_settle(1.0, 0.25)
    assert num is not None
    means = rng.normal(0.25, 1.0, size=(20_000, num)).mean(axis=1)
    assert (means > 1.96 / np.sqrt(num)).mean() == pytest.approx(0.8, abs=0.01)


def test_deviation_is_taken_within_strata():
    differences = np.array([0.0, 1.0, 0.0, 1.0, 100.0, 101.0, 100.0, 101.0])
    assert deviation(differences, ids(a=4, b=4)) == pytest.approx(np.sqrt(1 / 3))


def test_objectives_of_a_role_share_its_items():
    assert pooled_deviation({"x": 3.0, "y": 4.0}, {"x": 1, "y": 1}) == pytest.approx(5.0)
    assert pooled_deviation({"x": 3.0, "y": 4.0}, {"x": 2, "y": 2}) == pytest.approx(50**0.5)


def test_clusters_are_drawn_whole():
    """Five items that score the same are one item."""
    rng = np.random.default_rng(0)
    scores = rng.random((2, 30))
    clusters = [f"a/{i // 5 * 5}" for i in range(150)]
    found = resample_means(
        scores.repeat(5, axis=1), clusters, seed=1, name="x", num_resamples=100_000
    )
    assert found.var(axis=0) == pytest.approx(scores.var(axis=1, ddof=1) / 30, rel=0.02)


def test_items_needed_count_what_items_of_a_cluster_share():
    scores = np.random.default_rng(0).random(30)
    clusters = [f"a/{i // 5 * 5}" for i in range(150)]
    found = deviation(scores.repeat(5), clusters)
    assert found == pytest.approx(np.sqrt(5) * deviation(scores, ids(a=30)))
