from __future__ import annotations

import math

import numpy as np
import pytest

from backtrack.errors import UsageError
from backtrack.records import Axis
from backtrack.selection.stats.utility import (
    make_yardstick,
    role_axis,
    role_points,
    to_points,
    utility,
    utility_shares,
)
from tests.selection.fakes import make_info

TARGET = make_info("sums", "target")
GENERAL = make_info("prose", "general")
LOSS = make_info("loss", "general", unit="nats a token", direction="minimize")


def means(**scores: list[float]) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in scores.items()}


def in_points(score: float, **info: object) -> float:
    return float(to_points(np.array([score]), make_yardstick(make_info("x", "target", **info)))[0])


def test_a_role_of_fractions_reads_in_percent():
    assert role_axis([TARGET, GENERAL], "target") == Axis(unit="%", direction="maximize")
    assert in_points(0.25) == pytest.approx(25)


def test_any_other_role_reads_in_points_of_which_more_is_better():
    in_points = Axis(unit="points", direction="maximize")
    error = make_info("errors", "general", direction="minimize")
    ranged = make_info("logic", "general", range=(0.2, 0.8))
    for objective in (LOSS, error, ranged):
        assert role_axis([TARGET, GENERAL, objective], "general") == in_points


def test_an_error_rate_counts_from_its_worse_end():
    assert in_points(0.1, direction="minimize") == pytest.approx(90)


def test_a_loss_counts_as_the_probability_it_stands_for():
    assert in_points(2.0, unit="nats a token", direction="minimize") == pytest.approx(
        100 * math.exp(-2)
    )
    assert in_points(1.5, unit="bits a byte", direction="minimize") == pytest.approx(100 * 2**-1.5)


def test_a_range_runs_from_the_worst_score_to_the_best_in_either_direction():
    assert in_points(30, unit="BLEU", range=(20, 40)) == pytest.approx(50)
    assert in_points(45, unit="BLEU", range=(20, 40)) == pytest.approx(125)
    loss = {"unit": "nats a token", "direction": "minimize", "range": (4.0, 2.0)}
    assert in_points(2.5, **loss) == pytest.approx(75)


def test_a_unit_without_a_scale_needs_a_range():
    with pytest.raises(UsageError, match=r"'x'.*'BLEU'.*range: \[worst, best\]"):
        in_points(30, unit="BLEU")


def test_a_log_likelihood_is_no_loss():
    with pytest.raises(UsageError, match="range"):
        in_points(-2.0, unit="nats a token", direction="maximize")


def test_a_role_weighs_its_objectives():
    heavy = make_info("logic", "general", weight=3.0)
    points = means(sums=[0], prose=[40], logic=[80])
    assert role_points(points, [TARGET, GENERAL, heavy], "general") == pytest.approx([70])


def test_utility_is_the_weighted_mean_of_both_roles():
    points = means(sums=[50, 20], prose=[30, 60])
    assert utility(points, [TARGET, GENERAL], 0.75) == pytest.approx([45, 30])


def test_shares_are_what_one_more_point_of_an_objective_adds_to_the_utility():
    objectives = [TARGET, GENERAL, make_info("logic", "general", weight=3.0)]
    shares = utility_shares(objectives, 0.3)
    points = means(sums=[20], prose=[40], logic=[80])
    assert sum(shares.values()) == pytest.approx(1)
    for name in points:
        moved = utility({**points, name: points[name] + 1}, objectives, 0.3)
        assert moved - utility(points, objectives, 0.3) == pytest.approx(shares[name])


def test_samples_and_points_go_through_the_same_functions():
    points = means(sums=[50, 20], prose=[30, 60])
    stacked = {name: np.vstack([values, values]) for name, values in points.items()}
    once = utility(points, [TARGET, GENERAL], 0.75)
    assert np.array_equal(utility(stacked, [TARGET, GENERAL], 0.75), [once, once])
