"""Regret of rules of choosing on simulated paths with known truth (see `paths`).

    python tests/bench/regret.py [--seeds 200] [--first 0] [--items 200] [--weights 0.5]

Every point of the default anchors is measured on all selection items.

    ours      the rule of choosing        cautious  the same with `--cautious`
    argmax    highest smoothed utility    grid      highest measured one of 11 alphas
    final, half                           the final checkpoint and its alpha 0.5, taken blindly

REGRET is the true utility of the path's best strength less that of the named point, in points: a
mean over seeds. A gain cell is a shape whose best point is above the base, at one gain; the other
cells, flat and falling ones, have the base as the best. Mix is the mean of both kinds.

Seeds from 1,000 on served to tune the rule; report others.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from typing import NamedTuple

import numpy as np

from backtrack.point import Point
from backtrack.selection.choice.rule import choose
from backtrack.selection.stats.scores import RoleScores
from tests.bench.paths import BASE_IS_BEST, FINAL, POINTS, SHAPES, Path

GAINS = (1.0, 2.0, 5.0, 10.0)
NUM_RESAMPLES = 1000
GRID = [i for i, p in enumerate(POINTS) if p.is_base or p.step == FINAL.step]
HALF = POINTS.index(Point(step=FINAL.step, alpha=0.5))


class Job(NamedTuple):
    """A path, its items a role and the seeds of the draws."""

    path: Path
    num_items: int
    seeds: range


def cells(weight: float) -> list[Path]:
    """All shapes and gains at a weight; a flat path has no gain."""
    pairs = product(SHAPES, GAINS)
    return [Path(s, g, weight) for s, g in pairs if s != "flat" or g == GAINS[0]]


def regrets(job: Job) -> dict[str, float]:
    """Mean regret by rule."""
    path, num_items, seeds = job
    utilities, is_feasible = path.utilities(), np.ones(len(POINTS), dtype=bool)
    found: dict[str, list[float]] = {}
    for seed in seeds:
        table = path.draw(num_items, seed)
        roles = RoleScores(table, seed, NUM_RESAMPLES).smoothed
        scores = roles.at(path.weight)
        decision = choose(scores, is_feasible)
        named = {
            "ours": decision.chosen,
            "cautious": decision.cautious,
            "argmax": decision.top,
            "grid": GRID[int(scores.measured[GRID].argmax())],
            "final": POINTS.index(FINAL),
            "half": HALF,
        }
        for rule, column in named.items():
            found.setdefault(rule, []).append(path.best - float(utilities[column]))
        found.setdefault("base named", []).append(float(POINTS[decision.chosen].is_base))
    return {rule: float(np.mean(values)) for rule, values in found.items()}


def show(jobs: list[Job], results: list[dict[str, float]]) -> None:
    """Regret by cell, then its mean and worst over cells of each kind."""
    rules = list(results[0])
    print(f"{'shape':<12} gain  " + "  ".join(f"{rule:>8}" for rule in rules))
    kinds: dict[str, list[list[float]]] = {"gain": [], "base is best": []}
    for job, result in zip(jobs, results, strict=True):
        values = [result[rule] for rule in rules]
        kinds["base is best" if job.path.shape in BASE_IS_BEST else "gain"].append(values)
        numbers = "  ".join(f"{value:8.2f}" for value in values)
        print(f"{job.path.shape:<12} {job.path.gain:4g}  {numbers}")
    means = {kind: np.mean(values, axis=0) for kind, values in kinds.items()}
    rows = {
        "gain, mean": means["gain"],
        "gain, worst": np.max(kinds["gain"], axis=0),
        "base, mean": means["base is best"],
        "base, worst": np.max(kinds["base is best"], axis=0),
        "mix": np.mean(list(means.values()), axis=0),
    }
    for name, values in rows.items():
        print(f"{name:<18}" + "  ".join(f"{value:8.2f}" for value in values))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--items", default="50,200,1000")
    parser.add_argument("--weights", default="0.1,0.5,0.9,1.0")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    seeds = range(asked.first, asked.first + asked.seeds)
    for num_items, weight in product(asked.items.split(","), asked.weights.split(",")):
        jobs = [Job(path, int(num_items), seeds) for path in cells(float(weight))]
        with ProcessPoolExecutor(asked.workers) as pool:
            results = list(pool.map(regrets, jobs))
        print(f"\n{num_items} items a role, weight {weight}, seeds {seeds.start} to {seeds[-1]}")
        show(jobs, results)


if __name__ == "__main__":
    main()
