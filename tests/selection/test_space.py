from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from backtrack.point import Point
from backtrack.recipe import SearchSection
from backtrack.selection.search.sampler import distributions
from backtrack.selection.search.space import Space, anchors, farthest_first, max_alpha_on_grid

STEPS = tuple(range(10, 110, 10))
SPACE = Space(STEPS, 1.2)
WIDE = Space(STEPS, 1.2, ("uniform", "safe", "min", "depth", "blocks", "modules"))


def point_at(index: int, alpha: float) -> Point:
    return SPACE.point_at({"step": index, "alpha": alpha})


def test_anchors_are_base_final_the_alphas_and_even_checkpoints_in_this_order():
    found = anchors(STEPS, SearchSection(alphas=(0.25, 0.75), checkpoints=4))
    assert [str(point) for point in found] == [
        "base",
        "step 100 alpha 1",
        "step 100 alpha 0.25",
        "step 100 alpha 0.75",
        "step 20 alpha 1",
        "step 40 alpha 1",
        "step 60 alpha 1",
        "step 80 alpha 1",
        "step 20 alpha 0.5",
        "step 40 alpha 0.5",
        "step 60 alpha 0.5",
        "step 80 alpha 0.5",
    ]


@pytest.mark.parametrize("num_steps", range(1, 12))
@pytest.mark.parametrize("checkpoints", range(7))
def test_earlier_checkpoints_are_distinct_and_as_even_as_the_steps_allow(
    num_steps: int, checkpoints: int
):
    section = SearchSection(alphas=(), checkpoints=checkpoints)
    earlier = anchors(range(1, num_steps + 1), section)[2:]
    picked = [point.step for point in earlier if point.alpha == 1]
    assert [point.step for point in earlier if point.alpha == 0.5] == picked
    assert len(picked) == len(set(picked)) == min(checkpoints, num_steps - 1)
    gaps = [b - a for a, b in pairwise([0, *picked, num_steps])]
    assert max(gaps) - min(gaps) <= 1


def test_an_alpha_of_one_is_the_final_checkpoint_and_measured_once():
    assert len(anchors(STEPS, SearchSection(alphas=(0.5, 1.0), checkpoints=0))) == 3


def test_proposals_close_together_are_one_point():
    assert point_at(3, 0.3000001) == point_at(3, 0.304) == Point(step=40, alpha=0.3)


def test_alpha_zero_is_the_base_at_every_step():
    assert point_at(3, 0.0) == point_at(7, 0.004) == Point.base()


def test_parameters_of_a_point_give_the_point_again():
    for index in range(len(STEPS)):
        for hundredths in range(1, 121):
            point = point_at(index, hundredths / 100)
            assert SPACE.parameters_of(point) == {"step": index, "alpha": hundredths / 100}


def test_points_outside_the_space_have_no_parameters():
    assert SPACE.parameters_of(Point(step=10, alpha=1.3)) is None
    assert SPACE.parameters_of(Point(step=15, alpha=0.5)) is None
    assert SPACE.parameters_of(Point(step=10, alpha=0.5, profile="safe")) is None
    assert WIDE.parameters_of(Point(step=10, alpha=0.5, profile="depth(0.5,1.5)")) is None
    assert WIDE.parameters_of(Point(step=10, alpha=0.5, profile="depth(0.5)")) is None


@pytest.mark.parametrize(
    "profile",
    ["uniform", "safe", "min", "depth(0.5,1)", "blocks(0.5,0.75,1)", "modules(1,0.05)"],
)
def test_parameters_of_a_profile_give_the_same_spelling_again(profile: str):
    point = Point(step=40, alpha=0.35, profile=profile)
    parameters = WIDE.parameters_of(point)
    assert parameters is not None
    assert set(parameters) == set(distributions(WIDE))
    assert WIDE.point_at(parameters) == point


@pytest.mark.parametrize("kind", ["depth", "blocks", "modules"])
def test_a_profile_of_equal_multipliers_is_uniform(kind: str):
    def proposed(multiplier: float) -> Point:
        parameters: dict[str, Any] = {"step": 3, "alpha": 0.8, "profile": kind}
        return WIDE.point_at(parameters | dict.fromkeys(WIDE.multipliers, multiplier))

    assert proposed(1.0) == Point(step=40, alpha=0.8)
    assert proposed(0.5) == Point(step=40, alpha=0.4)
    assert proposed(0.0) == Point.base()


def test_only_profiles_that_may_be_proposed_add_parameters():
    assert SPACE.multipliers == ()
    assert Space(STEPS, 1.2, ("uniform", "modules")).multipliers == (
        "modules_attention",
        "modules_mlp",
    )


def test_profiles_safe_and_min_are_anchors_at_alpha_one():
    section = SearchSection(alphas=(), checkpoints=0, profiles=("uniform", "safe", "depth"))
    assert [str(point) for point in anchors(STEPS, section)][2:] == ["step 100 alpha 1 safe"]


def test_under_a_budget_the_first_anchors_lie_far_apart_in_step_and_alpha():
    found = anchors(STEPS, SearchSection(profiles=("uniform", "safe")))
    ordered = farthest_first(found)
    assert sorted(map(str, ordered)) == sorted(map(str, found))
    assert ordered[:2] == found[:2]
    first = ordered[2:8]
    assert {point.alpha for point in first if point.step == 100} == {0.3, 0.5, 0.8}
    assert {point.alpha for point in first if point.step < 100} == {0.5, 1.0}
    assert ordered[-1] == Point(step=100, profile="safe")


def test_under_a_budget_steps_are_apart_by_their_doublings_and_less_so_near_the_base():
    ordered = farthest_first(anchors(STEPS, SearchSection(alphas=(), checkpoints=9)))
    assert [point.step for point in ordered if point.alpha == 1][:3] == [100, 10, 30]
    assert ordered.index(Point(step=30)) < ordered.index(Point(step=30, alpha=0.5))


@pytest.mark.parametrize(
    ("asked", "highest"), [(1.2, 1.2), (1.0, 1.0), (0.119, 0.11), (0.002, 0.01)]
)
def test_the_highest_alpha_lies_on_the_grid(asked: float, highest: float):
    assert max_alpha_on_grid(SearchSection(max_alpha=asked)) == highest
