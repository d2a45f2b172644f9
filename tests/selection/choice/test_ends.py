"""Choices at the ends: extreme weights, knees and fronts without one, ties, flat paths, cliffs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from backtrack.point import Point
from backtrack.records.selection import Constraints
from backtrack.selection.choice.select import select
from tests.selection.fakes import FakeEngine, make_recipe, make_run, pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backtrack.records.selection import Selection

ALPHAS = tuple(i / 10 for i in range(1, 10))


def pick(
    path: Path,
    target: Callable[[float], float],
    general: Callable[[float], float],
    *,
    is_exact: bool = True,
    **given: Any,
) -> Selection:
    """Choose on a line of anchors; with `is_exact`, measured scores are the true ones."""
    items = {"selection": 200, "report": 200}
    whole = {"trials": 0, "checkpoints": 0, "racing": {"shares": []}, "items": items}
    run = make_run(path, make_recipe(alphas=ALPHAS, **whole))
    placement: Any = FakeEngine()
    objectives: Any = pair(target, general, is_exact=is_exact, num_items=400)
    return select(run, placement=placement, objectives=objectives, **given).selection


def bend(progress: float) -> float:
    return 0.2 + 0.4 * min(2 * progress, 1) + 0.1 * progress


def falling(progress: float) -> float:
    return 0.8 - 0.4 * progress**2


def cliff(progress: float) -> float:
    return 0.7 if progress <= 0.8 else 0.05


def knee_note(selection: Selection) -> str:
    (note,) = [note for note in selection.notes if "knee" in note]
    return note


def test_the_knee_is_where_both_ends_of_the_front_are_worth_the_same(tmp_path: Path):
    selection = pick(tmp_path / "run", bend, falling, is_knee=True)
    assert selection.weight == pytest.approx(40 / (40 + 50), abs=0.02)
    assert selection.chosen.alpha == 0.5
    assert "its knee, step 40 alpha 0.5, has" in knee_note(selection)
    assert knee_note(selection).endswith("and is the choice.")


def test_a_bound_moves_the_knee_to_the_front_of_what_meets_it(tmp_path: Path):
    bounds = Constraints(max_general_drop=20)
    selection = pick(tmp_path / "run", bend, falling, is_knee=True, constraints=bounds)
    met = [c for c in selection.candidates if c.is_feasible]
    target, general = (
        np.ptp([c.smoothed_target for c in met]),
        np.ptp([c.smoothed_general for c in met]),
    )
    assert selection.weight == pytest.approx(general / (target + general))
    assert selection.weight < 0.35


def test_where_one_point_is_the_best_on_both_roles_there_is_no_knee(tmp_path: Path):
    selection = pick(tmp_path / "run", bend, bend, is_knee=True)
    assert (selection.weight, selection.chosen) == (0.5, Point(step=40))
    assert knee_note(selection) == (
        "No point of the front trades one role for the other, so there is no knee: "
        "the weight is 0.50."
    )


def test_where_every_trade_loses_there_is_no_knee(tmp_path: Path):
    rising_late, falling_early = (lambda x: 0.3 + 0.4 * x**4), (lambda x: 0.3 + 0.4 * (1 - x) ** 4)
    selection = pick(tmp_path / "run", rising_late, falling_early, is_knee=True)
    assert selection.chosen in (Point.base(), Point(step=40))
    assert knee_note(selection).endswith("no point between them has more: the front has no knee.")


def test_a_choice_that_is_not_the_knee_is_not_called_so(tmp_path: Path):
    even = (lambda x: 0.4 + 0.1 * x * (2 - x)), (lambda x: 0.7 - 0.1 * x**2)
    selection = pick(tmp_path / "run", *even, is_knee=True)
    # Alpha 0.4 is 0.1 points below 0.5.
    assert selection.chosen.alpha == 0.4
    assert "its knee, step 40 alpha 0.5, has 2.5 points more." in knee_note(selection)
    assert "The choice is nearer to the base: its utility is only 0.1" in knee_note(selection)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_equal_points_are_all_on_the_front_and_the_base_is_chosen(tmp_path: Path, weight: float):
    selection = pick(tmp_path / "run", lambda _: 0.4, lambda _: 0.6, weight=weight)
    assert selection.chosen == Point.base()
    assert all(c.is_on_front and c.is_tied for c in selection.candidates)
    assert "No measured point has a higher utility than the base." in selection.notes


def test_at_weight_one_only_the_target_counts_and_at_weight_zero_only_general(tmp_path: Path):
    for weight, chosen in ((0.0, Point.base()), (1.0, Point(step=40))):
        path = tmp_path / f"{weight}"
        assert pick(path, lambda x: 0.3 + 0.4 * x, falling, weight=weight).chosen == chosen


def test_among_equals_at_weight_one_the_nearest_to_the_base_is_chosen(tmp_path: Path):
    selection = pick(tmp_path / "run", lambda x: min(0.2 + x, 0.6), falling, weight=1.0)
    assert selection.chosen.alpha == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize("weight", [0.1, 0.9])
def test_beyond_a_cliff_nothing_is_chosen(tmp_path: Path, weight: float):
    rising = lambda x: 0.3 + 0.4 * x if x <= 0.8 else 0.05  # noqa: E731
    chosen = pick(tmp_path / "run", rising, cliff, is_exact=False, weight=weight).chosen
    assert chosen.alpha <= 0.8
