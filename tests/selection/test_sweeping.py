"""The table of answers: read as the page reads it, it says what the rule says."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from backtrack.errors import SelectionError
from backtrack.point import Point
from backtrack.records.selection import Constraints, ObjectiveBound
from backtrack.selection.choice import sweep as sweeping
from backtrack.selection.choice.candidates import judge
from backtrack.selection.choice.sweep import sweep
from backtrack.selection.stats.table import ScoreTable, Setting
from tests.selection.fakes import FakeEngine, Formula, make_info, pair

FINAL = Point(step=40)


def make_table(points, objectives, num_items, seed=0) -> ScoreTable:
    """Scores by formula; some points are measured on part of the items."""
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
    setting = Setting(
        "selection",
        "attached",
        "native",
        tuple(o.info for o in objectives),
        {o.info.name: o.item_ids[:num_items] for o in objectives},
    )
    distances = np.array([point.alpha * point.step for point in points])
    return ScoreTable(setting, tuple(points), ("anchor",) * len(points), distances, scores)


def make_objectives(seed: int):
    loss = Formula(
        make_info("loss", "general", unit="nats", direction="minimize"),
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
    """A number between two, or none, as often."""
    return float(rng.uniform(low, high)) if rng.random() < 0.5 else None


def read(found, weight, is_feasible):
    """What the page's script does, in Python: the first that meets the bounds, twice."""
    (swept,) = [each for each in found.weights if each.weight == weight]
    tops = [i for i in swept.tops if is_feasible[i]]
    if not tops:
        return None
    place = swept.tops.index(tops[0])
    tied, is_open = (
        np.unpackbits(np.frombuffer(base64.b64decode(bits[place]), np.uint8), bitorder="little")
        for bits in (swept.tied, swept.open)
    )
    chosen = next(i for i in found.preferred if is_feasible[i] and is_open[i])
    return chosen, [bool(tied[i]) and is_feasible[i] for i in range(len(is_feasible))]


@pytest.mark.parametrize("seed", range(4))
def test_the_table_says_what_the_rule_says_at_any_weight_and_bounds(seed: int):
    points = make_points()
    table = make_table(points, make_objectives(seed), num_items=60, seed=seed)
    found = sweep(judge(table, FINAL, 0.437, Constraints(), seed), "now")
    assert found is not None
    assert found.is_whole
    rng = np.random.default_rng(seed)
    answers: set[int | None] = set()
    for weight in (0.0, 0.05, 0.3, 0.437, 0.5, 0.75, 1.0):
        for _ in range(8):
            asked = Constraints(
                max_general_drop=maybe(rng, 0, 40),
                min_target=maybe(rng, 20, 100),
                keep_gain=maybe(rng, 0, 1),
                objectives={"loss": ObjectiveBound(limit=maybe(rng, 2, 3))},
            )
            try:
                outcome = judge(table, FINAL, weight, asked, seed)
            except SelectionError:
                answers.add(None)
                bounds = judge(table, FINAL, weight, Constraints(), seed).weighted.bounds(
                    0, 1, asked
                )
                is_met = np.all([bound.is_met for bound in bounds], axis=0)
                assert read(found, weight, is_met) is None
                continue
            is_feasible = [c.is_feasible for c in outcome.candidates]
            chosen, tied = read(found, weight, is_feasible)
            answers.add(chosen)
            assert points[chosen] == outcome.chosen
            assert tied == [c.is_tied for c in outcome.candidates]
            assert chosen in found.choosable
    assert len(answers) > 3


def test_intervals_against_an_end_are_those_of_the_paired_samples():
    table = make_table(make_points(), make_objectives(1), num_items=60)
    outcome = judge(table, FINAL, 0.3, Constraints(), 0)
    found = sweep(outcome, "now")
    assert found is not None
    (swept,) = [each for each in found.weights if each.weight == 0.3]
    samples = outcome.weighted.utility_samples
    for place, column in enumerate(found.choosable):
        expected = np.quantile(samples[:, column] - samples[:, 1], (0.025, 0.975))
        assert swept.to_final[place] == pytest.approx(tuple(expected), abs=1e-5)
    assert swept.smoothed == pytest.approx([c.smoothed for c in outcome.candidates], abs=1e-4)


def test_with_more_tops_than_are_kept_the_table_says_so(monkeypatch: pytest.MonkeyPatch):
    table = make_table(make_points(), make_objectives(1), num_items=60)
    outcome = judge(table, FINAL, 0.5, Constraints(), 0)
    monkeypatch.setattr(sweeping, "MAX_TOPS", 2)
    found = sweep(outcome, "now")
    assert found is not None
    assert not found.is_whole
    assert all(len(each.tops) <= 2 for each in found.weights)
    monkeypatch.setattr(sweeping, "MAX_POINTS", 3)
    assert sweep(outcome, "now") is None
