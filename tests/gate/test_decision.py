"""Intervals of a gain, what they show of a bound, and how many items would decide."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import stdtrit

from backtrack.gate.decision import Gain, Gains, outcome_of, overall
from backtrack.records import Interval

TAIL = 0.05


def gain_of(values, per_cluster: int = 1, top: float | None = 1.0, share: float = 1.0) -> Gain:
    clusters = tuple(f"task/{i // per_cluster:05d}" for i in range(len(values)))
    return Gain([Gains(np.array(values, dtype=float), clusters, top, share)])


def test_symmetric_gains_have_the_interval_of_student() -> None:
    values = np.array([-1.0, 1.0, 0.0, 0.5, -0.5] * 40)
    found = gain_of(values).interval(TAIL)
    variance = values.var(ddof=1) / 200 + 2 * (1 / 202) ** 2
    reach = stdtrit(199, 1 - TAIL) * math.sqrt(variance) + 0.5 / 200 / 2
    assert (found.low, found.high) == pytest.approx((-reach, reach))


def test_right_or_wrong_answers_have_the_interval_of_wilson() -> None:
    num, lost = 2000, 60
    found = gain_of([-1.0] * lost + [0.0] * (num - lost)).interval(TAIL)
    z, rate = stdtrit(num - 1, 1 - TAIL), lost / num
    centre = (rate + z**2 / 2 / num) / (1 + z**2 / num)
    reach = z * math.sqrt(rate * (1 - rate) / num + z**2 / 4 / num**2) / (1 + z**2 / num)
    reach += 0.5 / num
    assert (-found.high, -found.low) == pytest.approx((centre - reach, centre + reach), abs=4e-4)
    assert found.estimate - found.low > 1.1 * (found.high - found.estimate)


def test_answers_that_never_differ_have_an_interval_all_the_same() -> None:
    found = gain_of([0.0] * 50).interval(TAIL)
    assert found.low == pytest.approx(-stdtrit(49, 1 - TAIL) * math.sqrt(2) / 52 - 0.5 / 50)


def test_an_interval_reaches_half_of_the_least_move_of_the_mean_further() -> None:
    def step(values, top: float | None = None) -> float:
        return gain_of(values, top=top).parts[0].step

    assert step([-1.0, 0.0, 1.0, 1.0]) == 1 / 4
    assert step([-1.0, 1.0]) == 1 / 2
    assert step([0.25, 0.75, 0.75 + 1e-12, -0.5]) == pytest.approx(0.25 / 4)
    assert step([0.0] * 5, top=100.0) == 20
    assert step([0.0] * 5) == 0
    assert step(np.random.default_rng(0).standard_normal(500)) < 1e-4


def test_hardly_more_than_the_level_passes_at_the_bound_where_few_answers_change_hands() -> None:
    """Without half a step more, 5.9 of 100 pass by the end, and 1.5 of them at the first look."""
    rng = np.random.default_rng(3)
    num, chances = 200, (0.02, 0.97, 0.01)
    passed = [
        gain_of(rng.choice([-1.0, 0.0, 1.0], num, p=chances)).interval(0.0097).low >= -0.01
        for _ in range(4000)
    ]
    assert np.mean(passed) < 0.0125


def test_items_of_a_cluster_count_once() -> None:
    values = np.repeat(np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 40), 5)
    single, clustered = (gain_of(values, size).interval(TAIL) for size in (1, 5))
    assert clustered.high - clustered.low > 2 * (single.high - single.low)


def test_objectives_add_up_by_their_shares() -> None:
    rng = np.random.default_rng(1)
    parts = [
        Gains(rng.choice([-1.0, 0.0, 1.0], 100), tuple(f"{n}/{i}" for i in range(100)), 1.0, share)
        for n, share in (("a", 0.25), ("b", 0.75))
    ]
    found = Gain(parts)
    assert found.estimate == pytest.approx(
        0.25 * parts[0].values.mean() + 0.75 * parts[1].values.mean()
    )
    assert sum(found.variances) == pytest.approx(
        0.25**2 * (parts[0].values.var(ddof=1) / 100 + (1 / 102) ** 2)
        + 0.75**2 * (parts[1].values.var(ddof=1) / 100 + (1 / 102) ** 2)
    )


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(-0.5, 1.0, "passes"), (-1.0, 1.0, "passes"), (-1.1, 1.0, "undecided"),
     (-3.0, -1.0, "undecided"), (-3.0, -1.1, "fails")],
)  # fmt: skip
def test_an_interval_on_one_side_of_the_bound_decides(low, high, outcome) -> None:
    assert outcome_of(Interval(estimate=(low + high) / 2, low=low, high=high), -1.0) == outcome


def test_a_gate_fails_with_one_bound_and_passes_with_all() -> None:
    assert overall(["passes", "fails", "undecided"]) == "fails"
    assert overall(["passes", "undecided"]) == "undecided"
    assert overall(["passes", "passes"]) == "passes"


def test_the_items_that_would_decide_do_decide_in_about_eight_of_ten_cases() -> None:
    rng = np.random.default_rng(2)
    chances = (0.08, 0.87, 0.05)
    first = gain_of(rng.choice([-1.0, 0.0, 1.0], 5000, p=chances))
    needed = first.items_to_decide(first.estimate - 0.02, TAIL)
    assert needed is not None
    decided = [
        outcome_of(gain_of(rng.choice([-1.0, 0.0, 1.0], needed, p=chances)).interval(TAIL), -0.05)
        for _ in range(60)
    ]
    assert 0.6 < np.mean([each == "passes" for each in decided]) < 0.97


def test_no_number_of_items_decides_a_gain_that_lies_on_its_bound() -> None:
    assert gain_of([-1.0, 1.0] * 20).items_to_decide(0.0, TAIL) is None
