from __future__ import annotations

import numpy as np
import pytest

from backtrack.records import Axis
from backtrack.records.selection import Yardstick
from backtrack.selection.stats.utility import (
    is_degenerate,
    make_yardsticks,
    role_axis,
    role_points,
    role_scores,
    utility,
    utility_slopes,
)
from tests.selection.fakes import make_info

TARGET = make_info("sums", "target")
GENERAL = make_info("prose", "general")
LOSS = make_info("loss", "general", unit="nats a token", direction="minimize")


def means(**scores: list[float]) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in scores.items()}


def test_a_role_of_fractions_reads_in_percent():
    assert role_axis([TARGET, GENERAL], "target") == Axis(unit="%", direction="maximize")
    yardsticks = make_yardsticks([TARGET, GENERAL], {}, 0, 1)
    found = role_scores(means(sums=[0.25], prose=[0.5]), [TARGET, GENERAL], yardsticks, "target")
    assert found == pytest.approx([25])


def test_a_role_of_one_unit_reads_in_it_and_is_never_negated():
    assert role_axis([TARGET, LOSS], "general") == Axis(unit="nats a token", direction="minimize")
    scores = means(sums=[0.2, 0.6], loss=[2.0, 3.0])
    yardsticks = make_yardsticks([TARGET, LOSS], scores, 0, 1)
    assert role_scores(scores, [TARGET, LOSS], yardsticks, "general") == pytest.approx([2, 3])


def test_a_role_of_several_units_reads_in_points():
    mixed = [TARGET, GENERAL, LOSS]
    assert role_axis(mixed, "general") == Axis(unit="points", direction="maximize")
    scores = means(sums=[0.2, 0.6], prose=[0.8, 0.4], loss=[2.0, 3.0])
    yardsticks = make_yardsticks(mixed, scores, 0, 1)
    assert role_scores(scores, mixed, yardsticks, "general") == pytest.approx([100, 0])


def test_a_role_weighs_its_objectives():
    heavy = make_info("logic", "general", weight=3.0)
    objectives = [TARGET, GENERAL, heavy]
    yardsticks = make_yardsticks(objectives, {}, 0, 1)
    scores = means(sums=[0.0], prose=[0.4], logic=[0.8])
    assert role_scores(scores, objectives, yardsticks, "general") == pytest.approx([70])


def test_utility_of_fractions_is_the_weighted_mean_of_percents():
    objectives = [TARGET, GENERAL]
    yardsticks = make_yardsticks(objectives, {}, 0, 1)
    scores = means(sums=[0.5, 0.2], prose=[0.3, 0.6])
    assert utility(scores, objectives, yardsticks, 0.75) == pytest.approx([45, 30])


def test_an_error_rate_counts_from_its_worse_end():
    error = make_info("errors", "general", direction="minimize")
    yardsticks = make_yardsticks([TARGET, error], {}, 0, 1)
    scores = means(sums=[0.5], errors=[0.1])
    assert role_points(scores, [TARGET, error], yardsticks, "general") == pytest.approx([90])
    assert role_scores(scores, [TARGET, error], yardsticks, "general") == pytest.approx([10])


def test_one_loss_among_them_has_all_ranged_from_the_worse_end_to_the_best_seen():
    scores = means(sums=[0.2, 0.6, 0.7, 0.1], loss=[2.0, 3.0, 1.5, 9.0])
    yardsticks = make_yardsticks([TARGET, LOSS], scores, 0, 1)
    assert yardsticks["sums"] == Yardstick(zero=0.2, hundred=0.7)
    assert yardsticks["loss"] == Yardstick(zero=3.0, hundred=1.5)
    found = utility(scores, [TARGET, LOSS], yardsticks, 0.5)
    assert found[:3] == pytest.approx([(0 + 200 / 3) / 2, (80 + 0) / 2, 100])


def test_an_empty_range_gives_every_score_a_hundred():
    scores = means(sums=[0.2, 0.6], loss=[2.0, 2.0])
    yardsticks = make_yardsticks([TARGET, LOSS], scores, 0, 1)
    assert is_degenerate(yardsticks["loss"])
    assert role_points(scores, [TARGET, LOSS], yardsticks, "general") == pytest.approx([100, 100])
    assert utility_slopes([TARGET, LOSS], yardsticks, 0.5)["loss"] == 0


def test_slopes_are_what_one_more_unit_of_a_score_adds_to_the_utility():
    scores = means(sums=[0.2, 0.6, 0.4], loss=[2.0, 3.0, 1.5])
    yardsticks = make_yardsticks([TARGET, LOSS], scores, 0, 1)
    slopes = utility_slopes([TARGET, LOSS], yardsticks, 0.3)
    more = {name: values + 0.01 for name, values in scores.items()}
    for name in scores:
        moved = utility({**scores, name: more[name]}, [TARGET, LOSS], yardsticks, 0.3)
        rise = moved - utility(scores, [TARGET, LOSS], yardsticks, 0.3)
        assert rise == pytest.approx(0.01 * slopes[name])


def test_samples_and_points_go_through_the_same_functions():
    objectives = [TARGET, GENERAL]
    yardsticks = make_yardsticks(objectives, {}, 0, 1)
    scores = means(sums=[0.5, 0.2], prose=[0.3, 0.6])
    stacked = {name: np.vstack([values, values]) for name, values in scores.items()}
    once = utility(scores, objectives, yardsticks, 0.75)
    assert np.array_equal(utility(stacked, objectives, yardsticks, 0.75), [once, once])
