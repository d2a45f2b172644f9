from __future__ import annotations

import numpy as np
import pytest

from backtrack.records.selection import Constraints
from backtrack.selection.stats.bounds import BoundedScore, meets_all, role_bounds

TARGETS = np.array([30.0, 50.0, 45.0, 40.0])
GENERALS = np.array([60.0, 40.0, 55.0, 59.5])


def scores(targets, generals=GENERALS, error: float = 0.0, seed: int = 0):
    """Both roles, with independent errors at each point."""
    rng = np.random.default_rng(seed)
    return {
        role: BoundedScore(v, v + error * rng.standard_normal((4000, len(v))), num_items=100)
        for role, v in (("target", targets), ("general", generals))
    }


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
    bounds = role_bounds(scores(TARGETS), 0, 1, constraints)
    assert meets_all(bounds, 4).tolist() == expected


def test_keep_gain_without_a_gain_asks_for_the_bases_score():
    target = np.array([50.0, 40.0, 52.0, 49.0])
    bounds = role_bounds(scores(target), 0, 1, Constraints(keep_gain=0.9))
    assert meets_all(bounds, 4).tolist() == [True, False, True, False]


def test_a_bound_must_be_exceeded_by_a_one_sided_margin_of_its_error():
    # A difference of two points has an error of sqrt(2), so 95% take 1.645 * 1.41 = 2.33 points.
    found = scores(TARGETS, error=1.0)
    (bound,) = role_bounds(found, 0, 1, Constraints(max_general_drop=5.5))
    assert bound.margins == pytest.approx([0, 2.33, 2.33, 2.33], abs=0.1)
    assert bound.is_met.tolist() == [True, False, False, True]
    assert bound.is_reached.tolist() == [True, False, True, True]
    (plain,) = role_bounds(found, 0, 1, Constraints(max_general_drop=5.5, bound_confidence=0.5))
    assert plain.is_met.tolist() == bound.is_reached.tolist()


def test_all_of_the_gain_is_kept_by_the_final_checkpoint_itself():
    (bound,) = role_bounds(scores(TARGETS, error=1.0), 0, 1, Constraints(keep_gain=1))
    assert bound.is_met.tolist() == [False, True, False, False]


def test_items_needed_shrink_the_margin_to_the_reserve():
    (bound,) = role_bounds(scores(TARGETS, error=1.0), 0, 1, Constraints(max_general_drop=6))
    # The third point has a reserve of 1 point and a margin of 2.33: 5.4 times the 100 items.
    assert bound.items_needed[2] == pytest.approx(541, rel=0.1)
    assert np.isinf(bound.items_needed[1])
    assert bound.items_needed[0] == 100
