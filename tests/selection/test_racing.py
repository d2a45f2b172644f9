from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backtrack.errors import UsageError
from backtrack.point import Point
from backtrack.recipe import BudgetSection
from backtrack.records import Measurement
from backtrack.records.search import Evaluation
from backtrack.selection.search.budget import Budget, Cost, Plan
from backtrack.selection.search.driver import search
from backtrack.selection.search.racing import (
    dropped,
    likeliest_first,
    next_anchor,
    next_rung,
    probability_best,
)
from backtrack.selection.search.scheduler import SAMPLER_EVERY
from backtrack.selection.search.space import anchors
from backtrack.selection.stats.scores import RoleScores
from backtrack.selection.stats.table import tabulate
from tests.selection.fakes import (
    STEPS,
    FakeEngine,
    make_recipe,
    make_run,
    measured,
    pair,
    split_setting,
)

pytestmark = pytest.mark.usefixtures("study_in_memory")

FINAL = Point(step=40)
ALPHAS = tuple(i / 10 for i in range(1, 10))


def table_of(rows: dict[Point, tuple[Any, int]], num_items: int = 200):
    """Points with mean target and general, and on how many of the items they were measured."""
    ids = pair(num_items=num_items)[0].item_ids
    records: list[Measurement] = []
    for point, (means, count) in rows.items():
        for objective, mean in zip(pair(num_items=num_items, shake=0.02), means, strict=True):
            objective.mean = lambda _x, mean=mean: mean  # type: ignore[misc]
            names = [i.replace("sums", objective.info.name) for i in ids[:count]]
            records.append(measured(objective, point, names))
    infos = tuple(o.info for o in pair())
    items = {o.name: tuple(i.replace("sums", o.name) for i in ids) for o in infos}
    return tabulate(split_setting("selection", infos, items), records)


def scores_of(rows: dict[Point, tuple[Any, int]]):
    return RoleScores(table_of(rows), 0, 500)


ENDS = {Point.base(): ((0.2, 0.9), 200), FINAL: ((0.7, 0.4), 200)}
POOR, GOOD = Point(step=20), Point(step=40, alpha=0.5)


def test_a_point_significantly_worse_on_both_roles_is_dropped_and_one_on_the_front_is_not():
    rows = {**ENDS, GOOD: ((0.7, 0.8), 200), POOR: ((0.2, 0.3), 50)}
    assert dropped(scores_of(rows), 0.95).tolist() == [False, False, False, True]
    rows[POOR] = ((0.2, 0.9), 50)
    assert not dropped(scores_of(rows), 0.95).any()


def test_a_point_worse_by_less_than_its_items_show_stays():
    rows = {**ENDS, GOOD: ((0.7, 0.8), 200), POOR: ((0.69, 0.79), 25)}
    assert not dropped(scores_of(rows), 0.95).any()


def test_a_point_of_all_items_is_never_dropped():
    rows = {**ENDS, GOOD: ((0.7, 0.8), 200), POOR: ((0.2, 0.3), 200)}
    assert not dropped(scores_of(rows), 0.95).any()


def test_equal_points_are_dropped_at_most_as_often_as_the_level_says():
    """Forty searches of six equal points on a quarter of the items; items are right at random."""
    num_dropped = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = {**ENDS, **{Point(step=10, alpha=a / 10): ((0.5, 0.5), 50) for a in range(1, 7)}}
        table = table_of(rows)
        for scores in table.scores.values():
            is_measured = np.isfinite(scores)
            scores[is_measured] = rng.random(is_measured.sum()) < 0.5
        num_dropped += int(dropped(RoleScores(table, 0, 500), 0.95).sum())
    assert num_dropped <= 0.05 * 40 * 6


def test_the_point_most_likely_the_best_gets_its_next_rung_first():
    rows = {**ENDS, POOR: ((0.25, 0.88), 50), GOOD: ((0.65, 0.85), 50)}
    weighted = scores_of(rows)
    assert probability_best(weighted)[3] > probability_best(weighted)[2]
    done = [2, 2, 1, 1]
    evaluation = next_rung(weighted, done, [False, False, True, True], (), 0.95, list(ENDS))
    assert evaluation == Evaluation(GOOD, 1, "user")
    evaluation = next_rung(weighted, done, [False, False, True, True], {GOOD}, 0.95, list(ENDS))
    assert evaluation == Evaluation(POOR, 1, "user")
    assert next_rung(weighted, done, [False] * 4, (), 0.95, list(ENDS)) is None


def test_anchors_are_taken_in_order_and_not_twice():
    points = [Point.base(), FINAL, GOOD]
    assert next_anchor(points, [], ()) == Evaluation(Point.base(), 0, "anchor")
    assert next_anchor(points, [Point.base()], {FINAL}) == Evaluation(GOOD, 0, "anchor")
    assert next_anchor(points, points, ()) is None


def test_of_the_points_not_measured_the_one_between_the_best_comes_first():
    curve = {0.2: (0.4, 0.9), 0.4: (0.6, 0.88), 0.6: (0.68, 0.85), 0.8: (0.7, 0.6)}
    rows = {**ENDS, **{Point(step=40, alpha=a): (means, 50) for a, means in curve.items()}}
    near, low, high = (Point(step=40, alpha=alpha) for alpha in (0.5, 0.1, 1.2))
    scores = scores_of(rows)
    assert likeliest_first(scores, [low, high, near])[0] == near
    # A point that is not measured says nothing of those that are.
    roles = scores.smoothed
    wider = roles.with_unmeasured([low, high, near])
    np.testing.assert_allclose(wider.smoothed[:, : len(rows)], roles.smoothed, atol=1e-3)


def test_a_budget_leaves_earlier_steps_and_the_sampler_their_share(tmp_path: Path):
    racing = {"shares": [0.125, 0.5]}
    items, budget = {"selection": 200, "report": 200}, {"items": 1760}
    recipe = make_recipe(
        alphas=ALPHAS, checkpoints=3, trials=12, racing=racing, items=items, budget=budget
    )
    objectives: Any = pair(num_items=400)
    placement: Any = FakeEngine()
    found = search(
        make_run(tmp_path / "run", recipe),
        placement=placement,
        objectives=objectives,
    )
    new = list({m.point: m.origin for m in found}.items())[2:]
    assert len(new) >= 9
    for count in range(1, len(new) + 1):
        num_sampled = [origin for _, origin in new[:count]].count("sampler")
        assert num_sampled == count // SAMPLER_EVERY
    looks = [point for point, origin in new[:6] if origin == "anchor"]
    assert any(point.step < FINAL.step and 0 < point.alpha < 1 for point in looks)


def items_scored(path: Path, **given: Any) -> int:
    """Items scored by a search where the target falls again beyond alpha 1."""
    recipe = make_recipe(items={"selection": 200, "report": 200}, **given)
    objectives: Any = pair(lambda x: max(0.2 + 0.5 * x * (2 - x), 0), num_items=1000)
    placement: Any = FakeEngine()
    found = search(make_run(path, recipe), placement=placement, objectives=objectives)
    return sum(len(m.item_ids) for m in found)


def test_racing_scores_fewer_items_than_measuring_all(tmp_path: Path):
    alphas = {"alphas": [0.3, 1.5, 2.0, 2.5], "trials": 0}
    whole = items_scored(tmp_path / "whole", racing={"shares": []}, **alphas)
    raced = items_scored(tmp_path / "raced", racing={"shares": [0.125, 0.5]}, **alphas)
    assert whole == 10 * 400
    assert raced < whole


@pytest.mark.parametrize("budget", [450, 1000, 2000])
def test_a_budget_of_items_is_not_exceeded_and_nearly_spent(tmp_path: Path, budget: int):
    spent = items_scored(tmp_path / "run", budget={"items": budget})
    assert budget - 300 <= spent <= budget


def test_a_budget_too_small_for_both_ends_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"budget of 50 items is too small.* take 256"):
        items_scored(tmp_path / "run", budget={"items": 50})


def test_on_plan_is_called_before_anything_is_measured(tmp_path: Path):
    plans: list[Plan] = []
    run = make_run(tmp_path / "run", make_recipe(trials=2))
    objectives: Any = pair()
    search(
        run,
        placement=FakeEngine(),
        objectives=objectives,
        on_plan=lambda plan: plans.append(plan) or plans.append(len(objectives[0].calls)),  # type: ignore[func-returns-value,arg-type]
    )
    num_points = len(anchors(STEPS, make_recipe().search)) + 2
    least = 2 * 400 + (num_points - 2) * 2 * 64
    assert plans == [Plan(num_points, least, num_points * 400, 0, None), 0]


def test_tokens_and_minutes_are_bounded_at_the_pace_so_far():
    spent = Cost(items=100, tokens=5000, seconds=30.0)
    assert Budget(BudgetSection(tokens=10_000)).allows(spent, 100)
    assert not Budget(BudgetSection(tokens=10_000)).allows(spent, 101)
    assert Budget(BudgetSection(minutes=1)).allows(spent, 190)
    assert not Budget(BudgetSection(minutes=1)).allows(spent, 210)
    assert Budget(BudgetSection()).allows(spent, 10**9)
