from __future__ import annotations

import numpy as np
import pytest

from backtrack.records.selection import Constraints
from backtrack.selection.stats.bounds import meets_all, role_bounds

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
    bounds = role_bounds(TARGETS, GENERALS, 0, 1, constraints)
    assert meets_all(bounds, 4).tolist() == expected


def test_keep_gain_without_a_gain_asks_for_the_bases_score():
    target = np.array([50.0, 40.0, 52.0, 49.0])
    bounds = role_bounds(target, GENERALS, 0, 1, Constraints(keep_gain=0.9))
    assert meets_all(bounds, 4).tolist() == [True, False, True, False]
