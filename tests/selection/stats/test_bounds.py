from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backtrack.point import Point
from backtrack.records import Interval, ObjectiveInfo
from backtrack.records.selection import Constraints, ReportRow
from backtrack.selection.stats.bounds import BoundedScore, meets_all, missed, role_bounds

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


def report_row(target: float, general: float) -> ReportRow:
    def exactly(value: float) -> Interval:
        return Interval(estimate=value, low=value, high=value)

    return ReportRow(
        point=Point(step=1), scores={"sums": target / 100, "loss": 3 - general / 50},
        target=exactly(target), general=exactly(general), utility=exactly(0),
    )  # fmt: skip


def test_a_model_is_said_to_miss_each_bound_that_its_report_items_do_not_reach():
    given: dict[str, Any] = {"kind": "examples", "fingerprint": ""}
    objectives = (
        ObjectiveInfo(name="sums", role="target", direction="maximize", unit="fraction", **given),
        ObjectiveInfo(name="loss", role="general", direction="minimize", unit="nats", **given),
    )
    ends: Any = {"base": report_row(10, 90), "final": report_row(70, 60)}
    bounds = Constraints.model_validate(
        {"max_general_drop": 5, "min_target": 40, "keep_gain": 0.5}
        | {"objectives": {"sums": {"worst": 40}, "loss": {"max_drop": 0.1, "worst": 1.3}}}
    )
    assert missed(report_row(40, 85), ends, objectives, bounds) == ()
    assert missed(report_row(39.9, 85), ends, objectives, bounds) == (
        "min_target", "keep_gain", "worst of sums",
    )  # fmt: skip
    assert missed(report_row(40, 84), ends, objectives, bounds) == (
        "max_general_drop", "max_drop of loss", "worst of loss",
    )  # fmt: skip


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
