from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backtrack.point import Point
from backtrack.selection.choice.rule import choose
from backtrack.selection.stats.smoothed import SmoothedRoles
from tests.bench.coverage import BOUNDS, breaks
from tests.bench.paths import Path
from tests.bench.regret import Job, regrets

ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)
GRID = (Point.base(), *(Point(step=10, alpha=alpha) for alpha in ALPHAS))
# So far apart in training that no point's score says anything about another's.
SCATTERED = (Point.base(), *(Point(step=10 * 64**i) for i in range(5)))


def decide(points, utilities, noise=1.0, feasible=None, distances=None, seed=0, **given):
    """Independent noise of `noise` points at each point but the base."""
    rng = np.random.default_rng(seed)
    utilities = np.array(utilities, dtype=float)
    samples = utilities + noise * rng.normal(size=(2000, len(points)))
    if distances is None:
        distances = [point.alpha * point.step for point in points]
    flags = np.ones(len(points), dtype=bool) if feasible is None else np.array(feasible)
    shares = np.ones(len(points))
    # Both roles alike, so that utility is either.
    roles, role_samples = np.stack([utilities, utilities]), np.stack([samples, samples])
    errors = np.stack([noise**2 * np.eye(len(points))] * 2)
    distances = np.array(distances, dtype=float)
    scores = SmoothedRoles(points, distances, shares, roles, role_samples, errors)
    return choose(scores.at(0.5), flags, **given)


def test_a_clear_winner_is_chosen_alone():
    decision = decide(SCATTERED, [0, 1, 2, 20, 3, 4])
    assert (decision.chosen, decision.top, decision.is_tied.tolist()) == (
        3,
        3,
        [False] * 3 + [True] + [False] * 2,
    )


def test_among_the_tied_the_one_nearest_the_base_is_taken():
    decision = decide(SCATTERED, [0, 1, 19.8, 20, 19.8, 4])
    assert decision.top == 3
    assert np.flatnonzero(decision.is_tied).tolist() == [2, 3, 4]
    assert decision.chosen == 2


def test_nearest_is_by_distance_not_by_step():
    decision = decide(SCATTERED, [0, 1, 19.8, 20, 19.8, 4], distances=[0, 1, 9, 8, 5, 6])
    assert decision.chosen == 4


def test_at_equal_distance_the_smaller_alpha_then_the_earlier_step_is_taken():
    points = (Point.base(), Point(step=30), Point(step=20), Point(step=40, alpha=0.9))
    assert decide(points, [0, 20, 20, 20], distances=[0, 5, 5, 5]).chosen == 3
    assert decide(points[:3], [0, 20, 20], distances=[0, 5, 5]).chosen == 2


def test_an_infeasible_point_is_neither_top_nor_tied_nor_chosen():
    decision = decide(
        SCATTERED, [0, 1, 19.8, 20, 19.8, 4], feasible=[True, True, False, False, True, True]
    )
    assert (decision.top, decision.chosen) == (4, 4)
    assert not decision.is_tied[[2, 3]].any()


def test_the_base_is_chosen_where_the_top_hardly_leads_it():
    decision = decide(SCATTERED, [0, 0.2, 0.4, 0.1, 0.3, -0.4])
    assert (decision.chosen, decision.cautious) == (0, 0)


def test_a_lead_the_items_cannot_show_is_taken_and_left_by_the_cautious_rule():
    # The top leads by 1.5 points, one standard error of the difference.
    utilities = [0, 0.5, 1.5, 0.2, 0.7, -0.4]
    decision = decide(SCATTERED, utilities)
    assert decision.is_tied[0]
    assert (decision.top, decision.chosen, decision.cautious) == (2, 2, 0)
    assert decide(SCATTERED, utilities, is_cautious=True).chosen == 0


def test_a_point_nearly_as_good_as_the_top_is_taken_though_the_items_tell_them_apart():
    decision = decide(SCATTERED, [0, 1, 19.8, 20, 3, 4], noise=0.01)
    assert not decision.is_tied[2]
    assert (decision.chosen, decision.cautious) == (2, 3)


def test_the_base_is_left_for_a_small_gain_that_the_items_show():
    decision = decide(SCATTERED, [0, 0.05, 0.2, 0.15, -1, -2], noise=0.02)
    assert not decision.is_tied[0]
    assert decision.chosen == 1
    assert decision.cautious > 0


def test_the_rule_costs_less_than_the_cautious_one_where_gains_are_small():
    paths = [Path("inside", 2.0, 0.5), Path("overshoot", 5.0, 0.5), Path("saturating", 2.0, 0.5)]
    costs = np.mean([list(regrets(Job(path, 200, range(20))).values()) for path in paths], axis=0)
    ours, cautious, *_ = costs
    assert ours < 0.6 * cautious
    falling = regrets(Job(Path("falling", 5.0, 0.5), 200, range(20)))
    assert falling["cautious"] <= falling["ours"] < 0.5


def test_a_smooth_curve_the_items_are_sure_of_is_kept():
    curve = [40 * alpha - 30 * alpha**2 for alpha in (0, *ALPHAS)]
    assert decide(GRID, curve, noise=0.1).smoothed == pytest.approx(curve, abs=0.3)


def test_items_hard_at_every_point_do_not_flatten_the_curve():
    rng = np.random.default_rng(0)
    utilities = np.array([0.0, 40, 70, 60, 45, 20])
    samples = utilities + 90 * rng.normal(size=(2000, 1)) + rng.normal(size=(2000, 6))
    roles, role_samples = np.stack([utilities] * 2), np.stack([samples] * 2)
    distances: Any = np.arange(6.0)
    errors = np.stack([90**2 * np.ones((6, 6)) + np.eye(6)] * 2)
    scores = SmoothedRoles(GRID, distances, np.ones(6), roles, role_samples, errors).at(0.5)
    assert scores.smoothed == pytest.approx(utilities, abs=2)
    assert choose(scores, np.ones(6, dtype=bool)).chosen == 2


def test_one_lucky_point_does_not_win_against_its_neighbours():
    truth = np.array([0.0, 8, 12, 12, 8, 0])
    luck = np.array([0.0, 0, 0, 0, 5, 0])
    assert int(np.argmax(truth + luck)) == 4
    assert decide(GRID, truth + luck, noise=4).top in (2, 3)


def test_a_cliff_the_items_are_sure_of_is_not_smoothed_away():
    cliff = [0, 5, 10, 15, 20, -60]
    decision = decide(GRID, cliff, noise=1)
    assert decision.smoothed == pytest.approx(cliff, abs=1)
    assert decision.chosen == 4


def test_a_point_measured_no_lower_than_the_top_is_tied_whatever_the_curve_says():
    truth = np.array([0.0, 8, 12, 12, 8, 0])
    luck = np.array([0.0, 0, 0, 0, 5, 0])
    decision = decide(GRID, truth + luck, noise=4)
    assert decision.top != 4
    assert decision.is_tied[4]


def test_chances_of_being_best_are_shared_by_the_feasible():
    decision = decide(
        SCATTERED, [0, 1, 19.8, 20, 19.8, 4], feasible=[True, True, True, False, True, True]
    )
    assert decision.chances.sum() == pytest.approx(1)
    assert decision.chances[3] == 0
    assert decision.chances[[2, 4]] == pytest.approx([0.5, 0.5], abs=0.1)


def test_bounds_at_the_boundary_are_rarely_broken():
    bounds = BOUNDS["max_general_drop 5"]
    plain = bounds.model_copy(update={"bound_confidence": 0.5})
    shares = [np.mean([breaks(b, 100, 1, seed) for seed in range(60)]) for b in (bounds, plain)]
    assert shares[0] <= 0.12
    assert shares[1] >= 0.2
