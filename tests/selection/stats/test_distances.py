from __future__ import annotations

import numpy as np
import pytest

from backtrack.point import Point
from backtrack.selection.stats.distances import point_distances


def at(alpha, profile="uniform", step=8):
    return Point(step=step, alpha=alpha, profile=profile)


def test_along_a_uniform_path_distance_is_in_alpha():
    distances = point_distances((Point.base(), at(0.25), at(1.0)))
    assert distances.strength == pytest.approx(
        np.array([[0, 0.25, 1], [0.25, 0, 0.75], [1, 0.75, 0]])
    )
    assert not distances.is_other_step.any()
    assert not distances.is_other_profile.any()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (at(0.5, "depth(1,1)"), at(0.5)),
        (at(0.8, "depth(0.5,1)"), at(0.4, "depth(1,2)")),
        (at(0.6, "blocks(1,1,1)"), at(0.6, "modules(1,1)")),
        (at(0.0, "safe"), Point.base()),
    ],
)
def test_points_of_equal_strengths_are_at_distance_zero(one, other):
    distances = point_distances((one, other))
    assert distances.strength[0, 1] == pytest.approx(0)


def test_opposite_profiles_are_far_apart():
    attention, mlp = at(1.0, "modules(1,0)"), at(1.0, "modules(0,1)")
    distances = point_distances((attention, mlp, at(1.0)))
    assert distances.strength[0, 1] == pytest.approx(1.0)
    assert distances.strength[0, 2] == pytest.approx(np.sqrt(0.5))
    assert point_distances((at(1, "depth(0,1)"), at(1, "depth(1,0)"))).strength[0, 1] > 0.5


def test_safe_and_min_and_unknown_profiles_cannot_be_compared():
    profiles = ("uniform", "safe", "min", "depth(0,1)", "cubic(2)")
    distances = point_distances([at(1.0, profile) for profile in profiles])
    assert distances.is_other_profile[0].tolist() == [False, True, True, False, True]
    assert distances.is_other_profile[1, 2]


def test_steps_differ_by_doublings_and_the_base_counts_as_the_last():
    distances = point_distances((Point.base(), at(1.0, step=2), at(1.0, step=8)))
    assert distances.log_steps[1].tolist() == [2, 0, 2]
    assert distances.is_other_step[0].tolist() == [False, True, False]
