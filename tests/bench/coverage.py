"""Check coverage and false claims: whole selections on items drawn from recorded tables.

    python tests/bench/coverage.py [--selections 600] [--tables full,lora,oft] [--draws 400]

A selection draws 150 selection items and 150 report items per role from a recorded table, searches
and chooses as `select` does, racing included, and reports. The truth is the mean over all items of
the table; items are drawn with replacement, as from an infinite set with that mean.

coverage   share of 95% intervals of chosen minus base and chosen minus final (utility, target and
           general, on report items) that hold the true difference
claims     with all points made equal (each item's score is drawn anew at every point from the
           item's own rate, the same at all points): share of selections whose verdict says that
           the chosen point does better or worse than the base or the final checkpoint; and share
           of selections whose verdict says that it does better than one of them
bounds     share of choices that truly break a bound, which the path truly meets up to alpha 0.5,
           one of the anchors, and no further
known truth  coverage of the chosen point's own target and of differences, and claims, for rates of
           0.01 to 0.99, 50 to 200 items, single or in clusters of five, and for a target of 15
           items beside 200 (see `coverage_cells`)
bias       mean of reported less true utility of the chosen point, on report items, in points;
           beside it the same on selection items, the optimism that report items avoid
"""

from __future__ import annotations

import argparse
import math
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna

from backtrack.errors import SelectionError
from backtrack.evaluate.objectives.objective import Objective
from backtrack.point import Point
from backtrack.recipe import ChoosingRecipe, Recipe
from backtrack.records.search import Evaluation
from backtrack.records.selection import Constraints
from backtrack.selection.choice.candidates import choose_point
from backtrack.selection.measure.evaluator import Evaluator
from backtrack.selection.measure.items import Items
from backtrack.selection.measure.progress import Meter
from backtrack.selection.search.budget import Budget
from backtrack.selection.search.driver import Driver
from backtrack.selection.stats.comparisons import differences
from backtrack.selection.stats.scores import RoleScores
from tests.bench import paths
from tests.bench.coverage_cells import CLUSTER_SIZES, show_cells, show_equals
from tests.bench.replay import InMemory, Recorded, RecordedEngine, begun, load, near

ITEMS = 150


class Drawn(Objective):
    """An objective over items drawn with replacement; item `i` is row `i` of the draw."""

    def __init__(self, table: Recorded, info: Any, seed: int, *, is_equal: bool) -> None:
        self.info = info
        self._table = table
        self._is_equal = is_equal
        self._seed = seed
        rng = np.random.default_rng([seed, sum(map(ord, info.name))])
        role_share = 1 if info.role == "target" else len(table.scores) - 1
        self._num = 2 * ITEMS // role_share
        self._rows = rng.integers(0, table.scores[info.name].shape[1], self._num)
        self._rates = table.scores[info.name].mean(axis=0)
        self.item_ids = tuple(f"{info.name}/{i:04d}" for i in range(self._num))

    def measure(self, model: Any, item_ids: Any) -> tuple[float, ...]:
        table, name = self._table, self.info.name
        numbers = [int(item_id.rpartition("/")[2]) for item_id in item_ids]
        rows = self._rows[numbers]
        if not self._is_equal:
            return tuple(
                table.scores[name][table.points.index(near(table.name, model.point)), rows]
            )
        point = model.point
        own = [self._seed, point.step, round(100 * point.alpha), sum(map(ord, name))]
        uniform = np.random.default_rng(own).random(self._num)[numbers]
        return tuple((uniform < self._rates[rows]).astype(float))


def truth_of(table: Recorded, point: Point, *, is_equal: bool) -> dict[str, float]:
    """True target, general and utility at weight one half, in points."""
    values = table.truth
    column = table.points.index(near(table.name, point))
    target, general = values.mean(axis=1) if is_equal else values[:, column]
    return {"target": target, "general": general, "utility": (target + general) / 2}


def one(job: tuple[str, int, bool]) -> dict[str, Any]:
    """One whole selection."""
    name, seed, is_equal = job
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = load(name)
    search = {
        "items": {"selection": ITEMS, "report": ITEMS},
        "sampler": "random",
        "trials": 4,
        "seed": seed,
        "budget": {"items": int(5 * 2 * ITEMS)},
    }
    recipe = Recipe.model_validate({"name": "coverage", "base": "none", "search": search})
    run: Any = SimpleNamespace(
        path=Path(tempfile.mkdtemp()),
        choosing=ChoosingRecipe(recipe=recipe),
        choose_by=lambda _: None,
        save_choosing=lambda: None,
        model_digest="",
        checkpoint_digests=dict,
        steps=table.steps,
        final=Point(step=table.steps[-1]),
        measurements=list,
        record=lambda m: None,
    )
    objectives: Any = [Drawn(table, info, seed, is_equal=is_equal) for info in table.infos]
    engine: Any = RecordedEngine(table)
    evaluator = Evaluator(run, None, engine, objectives)
    shares = {o.info.name: len(o.item_ids) // 2 for o in objectives}
    evaluator._items = Items(
        recipe.search,
        {o.info.name: o.item_ids[: shares[o.info.name]] for o in objectives},
        {o.info.name: o.item_ids[shares[o.info.name] :] for o in objectives},
    )
    study: Any = InMemory()
    Driver(evaluator, study, Budget(recipe.search.budget), begun(4), None).run()
    selection = evaluator.table(evaluator.setting("selection"))
    scores = RoleScores(selection, seed)
    outcome = choose_point(scores, run.final, 0.5, recipe.select)
    meter = Meter(0, None)
    compared = dict.fromkeys([*evaluator.ends, outcome.chosen])
    evaluator.measure([Evaluation(p, None, "report") for p in compared], "report", meter)
    report = evaluator.table(evaluator.setting("report"))
    weighted = RoleScores(report, seed).at(0.5)
    chosen = outcome.chosen
    own = truth_of(table, chosen, is_equal=is_equal)
    found: dict[str, Any] = {"covered": [], "claims": False, "wins": False}
    gaps = differences(weighted, chosen, run.final)
    for gap, other in zip(gaps, evaluator.ends, strict=True):
        if chosen == other:
            continue
        true = truth_of(table, other, is_equal=is_equal)
        found["claims"] |= bool(gap.is_clear)
        found["wins"] |= bool(gap.is_clear) and gap.utility.estimate > 0
        for key in ("target", "general", "utility"):
            interval = getattr(gap, key)
            found["covered"].append(interval.low <= own[key] - true[key] <= interval.high)
    column = report.column(chosen)
    found["bias"] = float(weighted.utilities[column]) - own["utility"]
    on_selection = outcome.weighted.utilities[outcome.decision.chosen]
    found["optimism"] = float(on_selection) - own["utility"]
    found["moved"] = not chosen.is_base
    return found


BOUNDS = {
    "max_general_drop 5": Constraints(max_general_drop=5.0),
    "keep_gain 0.25": Constraints(keep_gain=0.25),
    "min_target 50": Constraints(min_target=50.0),
}
"""Bounds that the path of `breaks` truly meets up to, or from, alpha 0.5 on."""
TRADED = paths.Path("flat", 0.0, 0.5, trade=40.0)
"""Target rises and general falls by 20 points, with the square of the strength."""


def breaks(bounds: Constraints, num_items: int, per_cluster: int, seed: int) -> bool:
    """Whether a choice under bounds truly breaks one of them.

    The choice is the point of least general loss under a bound on the target, and the reverse.
    """
    table = TRADED.draw(num_items, seed, per_cluster=per_cluster)
    scores = RoleScores(table, seed, 1000)
    weight = 1.0 if bounds.max_general_drop is not None else 0.0
    try:
        chosen = choose_point(scores, paths.FINAL, weight, bounds).chosen
    except SelectionError:
        return False
    strength = float(paths.strengths([chosen])[0])
    return strength > 0.5 + 1e-9 if weight else strength < 0.5 - 1e-9


def show_bounds(num_seeds: int) -> None:
    """Share of choices that truly break a bound, with the margin and without."""
    print("truly broken bounds, with 95% confidence and without (50%)")
    for (name, bounds), num_items, size in product(BOUNDS.items(), (50, 200), CLUSTER_SIZES):
        plain = bounds.model_copy(update={"bound_confidence": 0.5})
        shares = [
            np.mean([breaks(each, num_items, size, seed) for seed in range(num_seeds)])
            for each in (bounds, plain)
        ]
        items = f"{num_items:4d} items, {size} a cluster"
        print(f"  {name:<20} {items}  " + "  ".join(f"{s:6.1%}" for s in shares), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--selections", type=int, default=600)
    parser.add_argument("--tables", default="full,lora,oft")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--draws", type=int, default=400)
    asked = parser.parse_args()
    names = asked.tables.split(",")
    show_cells(asked.draws)
    show_equals(min(asked.draws, 200))
    show_bounds(min(asked.selections, 200))
    for is_equal in (False, True):
        jobs = [(names[i % len(names)], i, is_equal) for i in range(asked.selections)]
        with ProcessPoolExecutor(asked.workers) as pool:
            results = list(pool.map(one, jobs, chunksize=4))
        show(results, is_equal=is_equal)


def show(results: list[dict[str, Any]], *, is_equal: bool) -> None:
    """Coverage, claims and bias with their standard errors."""
    covered = np.array([c for r in results for c in r["covered"]])
    claims, wins = (np.array([r[key] for r in results]) for key in ("claims", "wins"))
    bias, optimism = (np.array([r[key] for r in results]) for key in ("bias", "optimism"))
    count = len(results)
    print(
        f"{'all points equal' if is_equal else 'as recorded'}: {count} selections, "
        f"{100 * np.mean([r['moved'] for r in results]):.0f}% chose a point other than the base"
    )
    if len(covered):
        print(f"  coverage {100 * covered.mean():.1f}% of {len(covered)} intervals")
    for name, flags in (("claim a difference", claims), ("name a winner", wins)):
        error = math.sqrt(flags.mean() * (1 - flags.mean()) / count)
        print(f"  selections that {name} {100 * flags.mean():.1f} +- {100 * error:.1f}%")
    for name, values in (("bias on report items", bias), ("on selection items", optimism)):
        error = values.std(ddof=1) / math.sqrt(count)
        print(f"  {name} {values.mean():+.2f} +- {error:.2f} points")


if __name__ == "__main__":
    main()
