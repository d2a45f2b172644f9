from __future__ import annotations

import numpy as np
import pytest

from backtrack.records import ROLES, Axis, Role
from backtrack.records.selection import Constraints, Yardstick
from backtrack.selection.stats import front
from tests.selection.fakes import make_info

TARGET = make_info("sums", "target")
GENERAL = make_info("prose", "general")
LOSS = make_info("loss", "general", unit="nats a token", direction="minimize")
AXES: dict[Role, Axis] = {role: Axis(unit="%", direction="maximize") for role in ROLES}


def means(**scores: list[float]) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in scores.items()}


def test_a_role_of_fractions_reads_in_percent():
    assert front.role_axis([TARGET, GENERAL], "target") == Axis(unit="%", direction="maximize")
    yardsticks = front.make_yardsticks([TARGET, GENERAL], {}, 0, 1)
    found = front.role_scores(
        means(sums=[0.25], prose=[0.5]), [TARGET, GENERAL], yardsticks, "target"
    )
    assert found == pytest.approx([25])


def test_a_role_of_one_unit_reads_in_it_and_is_never_negated():
    assert front.role_axis([TARGET, LOSS], "general") == Axis(
        unit="nats a token", direction="minimize"
    )
    scores = means(sums=[0.2, 0.6], loss=[2.0, 3.0])
    yardsticks = front.make_yardsticks([TARGET, LOSS], scores, 0, 1)
    assert front.role_scores(scores, [TARGET, LOSS], yardsticks, "general") == pytest.approx(
        [2, 3]
    )


def test_a_role_of_several_units_reads_in_points():
    mixed = [TARGET, GENERAL, LOSS]
    assert front.role_axis(mixed, "general") == Axis(unit="points", direction="maximize")
    scores = means(sums=[0.2, 0.6], prose=[0.8, 0.4], loss=[2.0, 3.0])
    yardsticks = front.make_yardsticks(mixed, scores, 0, 1)
    assert front.role_scores(scores, mixed, yardsticks, "general") == pytest.approx([100, 0])


def test_a_role_weighs_its_objectives():
    heavy = make_info("logic", "general", weight=3.0)
    objectives = [TARGET, GENERAL, heavy]
    yardsticks = front.make_yardsticks(objectives, {}, 0, 1)
    scores = means(sums=[0.0], prose=[0.4], logic=[0.8])
    assert front.role_scores(scores, objectives, yardsticks, "general") == pytest.approx([70])


def test_utility_of_fractions_is_the_weighted_mean_of_percents():
    objectives = [TARGET, GENERAL]
    yardsticks = front.make_yardsticks(objectives, {}, 0, 1)
    scores = means(sums=[0.5, 0.2], prose=[0.3, 0.6])
    assert front.utility(scores, objectives, yardsticks, 0.75) == pytest.approx([45, 30])


def test_an_error_rate_counts_from_its_worse_end():
    error = make_info("errors", "general", direction="minimize")
    yardsticks = front.make_yardsticks([TARGET, error], {}, 0, 1)
    scores = means(sums=[0.5], errors=[0.1])
    assert front.role_points(scores, [TARGET, error], yardsticks, "general") == pytest.approx([90])
    assert front.role_scores(scores, [TARGET, error], yardsticks, "general") == pytest.approx([10])


def test_one_loss_among_them_has_all_ranged_from_the_worse_end_to_the_best_seen():
    scores = means(sums=[0.2, 0.6, 0.7, 0.1], loss=[2.0, 3.0, 1.5, 9.0])
    yardsticks = front.make_yardsticks([TARGET, LOSS], scores, 0, 1)
    assert yardsticks["sums"] == Yardstick(zero=0.2, hundred=0.7)
    assert yardsticks["loss"] == Yardstick(zero=3.0, hundred=1.5)
    found = front.utility(scores, [TARGET, LOSS], yardsticks, 0.5)
    assert found[:3] == pytest.approx([(0 + 200 / 3) / 2, (80 + 0) / 2, 100])


def test_an_empty_range_gives_every_score_a_hundred():
    scores = means(sums=[0.2, 0.6], loss=[2.0, 2.0])
    yardsticks = front.make_yardsticks([TARGET, LOSS], scores, 0, 1)
    assert front.is_degenerate(yardsticks["loss"])
    assert front.role_points(scores, [TARGET, LOSS], yardsticks, "general") == pytest.approx(
        [100, 100]
    )
    assert front.utility_slopes([TARGET, LOSS], yardsticks, 0.5)["loss"] == 0


def test_slopes_are_what_one_more_unit_of_a_score_adds_to_the_utility():
    scores = means(sums=[0.2, 0.6, 0.4], loss=[2.0, 3.0, 1.5])
    yardsticks = front.make_yardsticks([TARGET, LOSS], scores, 0, 1)
    slopes = front.utility_slopes([TARGET, LOSS], yardsticks, 0.3)
    more = {name: values + 0.01 for name, values in scores.items()}
    for name in scores:
        moved = front.utility({**scores, name: more[name]}, [TARGET, LOSS], yardsticks, 0.3)
        rise = moved - front.utility(scores, [TARGET, LOSS], yardsticks, 0.3)
        assert rise == pytest.approx(0.01 * slopes[name])


def test_samples_and_points_go_through_the_same_functions():
    objectives = [TARGET, GENERAL]
    yardsticks = front.make_yardsticks(objectives, {}, 0, 1)
    scores = means(sums=[0.5, 0.2], prose=[0.3, 0.6])
    stacked = {name: np.vstack([values, values]) for name, values in scores.items()}
    once = front.utility(scores, objectives, yardsticks, 0.75)
    assert np.array_equal(front.utility(stacked, objectives, yardsticks, 0.75), [once, once])


def test_the_front_holds_what_nothing_dominates():
    target, general = np.array([1.0, 2, 3, 2, 1]), np.array([3.0, 2, 1, 1, 3])
    assert front.pareto_front(target, general, AXES).tolist() == [True, True, True, False, True]


def test_the_front_knows_which_way_is_better():
    axes: dict[Role, Axis] = {**AXES, "general": Axis(unit="nats a token", direction="minimize")}
    target, general = np.array([1.0, 2, 3]), np.array([1.0, 1, 2])
    assert front.pareto_front(target, general, axes).tolist() == [False, True, True]


TARGETS = np.array([30.0, 50.0, 45.0, 40.0])
GENERALS = np.array([60.0, 40.0, 55.0, 59.5])


@pytest.mark.parametrize(
    ("constraints", "expected"),
    [
        (Constraints(), [True, True, True, True]),
        (Constraints(max_general_drop=5), [True, False, True, True]),
        (Constraints(max_general_drop=0), [True, False, False, False]),
        (Constraints(min_target=45), [False, True, True, False]),
        (Constraints(keep_gain=0.5), [False, True, True, True]),
        (Constraints(keep_gain=1), [False, True, False, False]),
        (Constraints(keep_gain=0), [True, True, True, True]),
        (Constraints(keep_gain=0.7, max_general_drop=5), [False, False, True, False]),
    ],
)
def test_constraints_bound_points_from_base_and_final(
    constraints: Constraints, expected: list[bool]
):
    found = front.bounds(TARGETS, GENERALS, 0, 1, constraints)
    assert front.feasible(found, 4).tolist() == expected


def test_keep_gain_without_a_gain_asks_for_the_bases_score():
    target = np.array([50.0, 40.0, 52.0, 49.0])
    found = front.bounds(target, GENERALS, 0, 1, Constraints(keep_gain=0.9))
    assert front.feasible(found, 4).tolist() == [True, False, True, False]
