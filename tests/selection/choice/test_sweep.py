"""The sweep: read as the page reads it, it gives the rule's answers; ranges agree with both."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from backtrack.errors import SelectionError
from backtrack.point import Point
from backtrack.records.selection import Constraints, ObjectiveBound
from backtrack.selection.choice import sweep as sweep_module
from backtrack.selection.choice.candidates import Outcome, choose_point
from backtrack.selection.choice.sweep import answer_weights, make_sweep, weight_ranges
from backtrack.selection.stats.bounds import meets_all
from backtrack.selection.stats.scores import RoleScores
from backtrack.selection.stats.table import ScoreTable, SplitSetting
from tests.selection.fakes import FakeEngine, Formula, make_info, pair

FINAL = Point(step=40)


def make_scores(points, objectives, num_items, seed=0) -> RoleScores:
    """Scores by formula; some points are measured on half of the items."""
    rng = np.random.default_rng(seed)
    scores = {}
    for objective in objectives:
        engine = FakeEngine()
        rows = []
        for point in points:
            engine.place(point)
            rows.append(objective.measure(engine.language_model, objective.item_ids[:num_items]))
        scores[objective.info.name] = np.array(rows, dtype=float)
    partial = [i for i in range(len(points)) if points[i] not in (Point.base(), FINAL)]
    for row in rng.choice(partial, len(partial) // 4, replace=False):
        for matrix in scores.values():
            matrix[row, num_items // 2 :] = np.nan
    setting = SplitSetting(
        "selection",
        "attached",
        "native",
        tuple(o.info for o in objectives),
        {o.info.name: o.item_ids[:num_items] for o in objectives},
    )
    distances = np.array([point.alpha * point.step for point in points])
    origins = ("anchor",) * len(points)
    table = ScoreTable(setting, tuple(points), origins, distances, scores)
    return RoleScores(table, seed)


def make(outcome: Outcome, **given: bool):
    sweep = make_sweep(outcome, answer_weights(outcome, **given), "now")
    assert sweep is not None
    return sweep


def make_objectives(seed: int):
    loss = Formula(
        make_info("loss", "general", unit="nats a token", direction="minimize"),
        lambda x: 2 + x**3,
        is_exact=True,
        seed=seed,
    )
    return *pair(seed=seed, shake=0.3), loss


def make_points():
    alphas = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
    line = [Point(step=40, alpha=a) for a in alphas]
    other = [Point(step=20, alpha=a, profile="safe") for a in (0.5, 0.8, 1.0)]
    return [Point.base(), FINAL, *line, *other, Point(step=10), Point(step=30)]


def maybe(rng: np.random.Generator, low: float, high: float) -> float | None:
    """A number between two or, half of the time, None."""
    return float(rng.uniform(low, high)) if rng.random() < 0.5 else None


def read(sweep, weight, is_feasible):
    """Choose as the page's script does: the first that meets the bounds, twice."""
    (swept,) = [each for each in sweep.weights if each.weight == weight]
    tops = [i for i in swept.tops if is_feasible[i]]
    if not tops:
        return None
    position = swept.tops.index(tops[0])
    tied, is_open = (
        np.unpackbits(np.frombuffer(base64.b64decode(bits[position]), np.uint8), bitorder="little")
        for bits in (swept.tied, swept.open)
    )
    chosen = next(i for i in sweep.preferred if is_feasible[i] and is_open[i])
    return chosen, [bool(tied[i]) and is_feasible[i] for i in range(len(is_feasible))]


@pytest.mark.parametrize("is_cautious", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_the_sweep_gives_the_rules_answer_at_any_weight_and_bounds(seed: int, is_cautious: bool):
    points = make_points()
    scores = make_scores(points, make_objectives(seed), num_items=60, seed=seed)
    first = choose_point(scores, FINAL, 0.437, Constraints(), is_cautious=is_cautious)
    sweep = make(first, is_cautious=is_cautious)
    assert sweep.is_whole
    rng = np.random.default_rng(seed)
    answers: set[int | None] = set()
    for weight in (0.0, 0.05, 0.3, 0.437, 0.5, 0.75, 1.0):
        for _ in range(8):
            asked = Constraints(
                max_general_drop=maybe(rng, 0, 40),
                min_target=maybe(rng, 20, 100),
                keep_gain=maybe(rng, 0, 1),
                objectives={"loss": ObjectiveBound(worst=maybe(rng, 2, 3))},
            )
            try:
                outcome = choose_point(scores, FINAL, weight, asked, is_cautious=is_cautious)
            except SelectionError:
                answers.add(None)
                is_met = meets_all(scores.bounds(0, 1, asked), len(points))
                assert read(sweep, weight, is_met) is None
                continue
            is_feasible = [c.is_feasible for c in outcome.candidates]
            chosen, tied = read(sweep, weight, is_feasible)
            answers.add(chosen)
            assert points[chosen] == outcome.chosen
            assert tied == [c.is_tied for c in outcome.candidates]
            assert chosen in sweep.choosable
    assert len(answers) > 3


def test_intervals_against_an_end_are_those_of_the_paired_samples():
    scores = make_scores(make_points(), make_objectives(1), num_items=60)
    outcome = choose_point(scores, FINAL, 0.3, Constraints())
    sweep = make(outcome)
    (swept,) = [each for each in sweep.weights if each.weight == 0.3]
    samples = outcome.weighted.utility_samples
    for position, column in enumerate(sweep.choosable):
        expected = np.quantile(samples[:, column] - samples[:, 1], (0.025, 0.975))
        assert swept.to_final[position] == pytest.approx(tuple(expected), abs=1e-5)
    assert swept.smoothed == pytest.approx([c.smoothed for c in outcome.candidates], abs=1e-4)


def test_with_more_tops_than_are_listed_the_sweep_says_so(monkeypatch: pytest.MonkeyPatch):
    scores = make_scores(make_points(), make_objectives(1), num_items=60)
    outcome = choose_point(scores, FINAL, 0.5, Constraints())
    monkeypatch.setattr(sweep_module, "MAX_TOPS", 2)
    sweep = make(outcome)
    assert not sweep.is_whole
    assert all(len(each.tops) <= 2 for each in sweep.weights)
    monkeypatch.setattr(sweep_module, "MAX_POINTS", 3)
    assert make_sweep(outcome, answer_weights(outcome), "now") is None


BOUNDS = (Constraints(), Constraints(max_general_drop=8), Constraints(keep_gain=0.6))
LIMITS = (("MAX_TOPS", 64), ("MAX_TOPS", 1), ("MAX_POINTS", 3))


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize(("limit", "value"), LIMITS)
def test_ranges_are_the_choices_at_each_hundredth_with_a_sweep_or_without(
    monkeypatch: pytest.MonkeyPatch, bounds: Constraints, limit: str, value: int
):
    monkeypatch.setattr(sweep_module, limit, value)
    scores = make_scores(make_points(), make_objectives(2), num_items=60, seed=2)
    outcome = choose_point(scores, FINAL, 0.437, bounds)
    answers = answer_weights(outcome)
    ranges = weight_ranges(outcome, answers)
    sweep = make_sweep(outcome, answers, "now")
    assert (sweep is None) == (limit == "MAX_POINTS")
    by_hundredth = {
        hundredth: swept.point
        for swept in ranges
        for hundredth in range(round(100 * swept.low), round(100 * swept.high) + 1)
    }
    assert sorted(by_hundredth) == list(range(101))
    for hundredth, point in by_hundredth.items():
        weight = hundredth / 100
        if hundredth % 7 == 0:
            assert point == choose_point(scores, FINAL, weight, bounds).chosen
        if sweep is not None and sweep.is_whole:
            chosen, _ = read(sweep, weight, outcome.is_feasible)
            assert point == scores.table.points[chosen]
