"""What a report claims of the chosen point against base and final checkpoint."""

from __future__ import annotations

import numpy as np

from backtrack.point import Point
from backtrack.records import Interval
from backtrack.records.selection import Difference
from backtrack.selection.choice.verdict import few_items, verdict
from backtrack.selection.stats.comparisons import differences, gap_parts
from backtrack.selection.stats.intervals import degrees_of_freedom
from backtrack.selection.stats.scores import RoleScores, WeightedScores
from backtrack.selection.stats.table import ScoreTable, SplitSetting
from backtrack.selection.stats.utility import utility_shares
from tests.selection.fakes import make_info

FINAL, CHOSEN = Point(step=40), Point(step=40, alpha=0.5)
POINTS = (Point.base(), CHOSEN, FINAL)
INFOS = (make_info("sums", "target"), make_info("law", "general"))


def weighted_scores(
    rates, seed: int, num_items: int = 100, per_cluster: int = 1
) -> WeightedScores:
    """Right and wrong answers at three points, independent but for items of a cluster."""
    rng = np.random.default_rng(seed)
    shape = (len(POINTS), num_items // per_cluster)
    scores = {
        o.name: (rng.random(shape) < np.array(rates)[:, None]).astype(float).repeat(per_cluster, 1)
        for o in INFOS
    }
    ids = {o.name: tuple(f"{o.name}/{i:04d}" for i in range(num_items)) for o in INFOS}
    clusters = {
        name: {each: names[i // per_cluster * per_cluster] for i, each in enumerate(names)}
        for name, names in ids.items()
    }
    setting = SplitSetting("report", "attached", "native", INFOS, ids, clusters=clusters)
    table = ScoreTable(setting, POINTS, ("report",) * 3, np.array([0.0, 1.0, 2.0]), scores)
    return RoleScores(table, seed, 1000).at(0.5)


def num_free(scores: RoleScores) -> float:
    shares = utility_shares(scores.objectives, 0.5)
    return degrees_of_freedom(gap_parts(scores, (0, 1), shares))


def test_two_comparisons_together_rarely_claim_a_difference_that_is_none():
    pairs = [differences(weighted_scores([0.6] * 3, seed), CHOSEN, FINAL) for seed in range(400)]
    by_interval = [any(d.utility.low > 0 or d.utility.high < 0 for d in pair) for pair in pairs]
    clear = [any(d.is_clear for d in pair) for pair in pairs]
    assert np.mean(clear) <= 0.06
    assert np.mean(by_interval) > np.mean(clear)


def test_a_single_comparison_goes_by_nearly_its_own_interval():
    pairs = [
        differences(weighted_scores([0.5, 0.6, 0.6], seed), FINAL, FINAL) for seed in range(100)
    ]
    said = [(d.is_clear, d.utility.low > 0 or d.utility.high < 0) for d, _ in pairs]
    assert sum(clear != excludes for clear, excludes in said) <= 3
    assert not any(to_final.is_clear for _, to_final in pairs)


def test_an_objective_of_few_items_counts_by_its_share_of_the_variance():
    level = {}
    for num_few in (15, 200):
        rng = np.random.default_rng(0)
        infos = (*INFOS, make_info("aime", "target"))
        counts = {"sums": 200, "law": 200, "aime": num_few}
        scores = {
            name: (rng.random((3, num)) < np.array([[0.5], [0.6], [0.5]])).astype(float)
            for name, num in counts.items()
        }
        ids = {name: tuple(f"{name}/{i:04d}" for i in range(num)) for name, num in counts.items()}
        setting = SplitSetting("report", "attached", "native", infos, ids)
        table = ScoreTable(setting, POINTS, ("report",) * 3, np.array([0.0, 1.0, 2.0]), scores)
        level[num_few] = num_free(RoleScores(table, 0, 500))
    # Most of the variance is that of the 15.
    assert 14 <= level[15] < 40
    assert 300 < level[200] <= 597


def test_a_large_difference_is_clear_and_said():
    found = differences(weighted_scores([0.2, 0.9, 0.5], 0), CHOSEN, FINAL)
    assert [difference.is_clear for difference in found] == [True, True]
    said = verdict(CHOSEN, FINAL, found)
    assert said.startswith("Step 40 alpha 0.5 does better than the base (utility +")
    assert " and the final checkpoint (utility +" in said


def two_differences(*, is_clear: bool | None) -> tuple[Difference, ...]:
    none, close = (Interval(estimate=e, low=e - 1, high=e + 1) for e in (0.0, 1.1))
    flat = {"target": none, "general": none, "items_to_settle": 9}
    return (
        Difference(to="base", utility=none, is_clear=False, **flat),
        Difference(to="final", utility=close, is_clear=is_clear, **flat),
    )


def test_an_interval_that_barely_excludes_zero_is_no_claim_and_the_reason_is_said():
    assert verdict(CHOSEN, FINAL, two_differences(is_clear=False)) == (
        "Step 40 alpha 0.5 cannot be told apart from the base (utility +0.0 points [-1.0, +1.0]) "
        "and the final checkpoint (utility +1.1 points [+0.1, +2.1], but of two comparisons). "
        "About so many items a role would tell it: 9 from the base, 9 from the final "
        "checkpoint."
    )


def test_where_nothing_is_shown_the_verdict_says_how_many_items_would_and_the_cautious_choice():
    said = verdict(CHOSEN, FINAL, two_differences(is_clear=False), Point.base())
    assert said.endswith(
        " About so many items a role would tell it: 9 from the base, 9 from the final "
        "checkpoint. The cautious rule takes the base."
    )
    found = differences(weighted_scores([0.2, 0.9, 0.5], 0), CHOSEN, FINAL)
    assert "would take" not in verdict(CHOSEN, FINAL, found, Point.base())


def test_selections_of_older_commits_are_read_by_their_intervals():
    said = verdict(CHOSEN, FINAL, two_differences(is_clear=None))
    assert "does better than the final checkpoint (utility +1.1 points [+0.1, +2.1])." in said


def test_items_of_a_cluster_are_no_evidence_of_their_own():
    """Otherwise a fourth of differences that are none would be claimed."""
    clear = [
        any(d.is_clear for d in differences(weighted_scores([0.6] * 3, s, 200, 4), CHOSEN, FINAL))
        for s in range(200)
    ]
    assert np.mean(clear) <= 0.07


def test_degrees_of_freedom_count_clusters():
    alone, shared = (weighted_scores([0.6] * 3, 0, 200, size).scores for size in (1, 4))
    assert 300 < num_free(alone) <= 398
    assert 80 < num_free(shared) <= 98


def test_few_clusters_are_said_once():
    setting = weighted_scores([0.6] * 3, 0, 200, 5).scores.table.setting
    assert list(few_items([setting])) == [
        "Intervals are rough where items are few: sums 40 clusters (200 items), "
        "law 40 clusters (200 items)."
    ]
