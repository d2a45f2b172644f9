"""Replay searches on recorded tables: regret and share of hypervolume against items scored.

    python tests/bench/replay.py [--seeds 200] [--methods ours,grid,...] [--tables full,lora,oft]

A table holds every item's score at every step and strength of a real run (`record_tables.py`). Its
items stand for all there are: the truth at each point is its mean over them, and a seed draws 200
selection items a role WITH replacement. Drawn without, 200 of a table's 400 items would err by
0.7 times what 200 items err by, and a method that pays for all of them would be flattered most. A
method then spends item evaluations and names a point for each weight.

    grid     11 strengths of the last checkpoint on all items, the highest measured utility
    random, tpe, nsga2, gp
             Optuna's samplers over step and strength, all items a point, likewise
    ours     racing on rungs of the items, score estimates, smoothed scores, the rule of choosing
    profiles ours, over `depth` and `modules` too; for the tables `lora-profiles`, `full-profiles`

REGRET is the true utility of the best point of the table less that of the named point, in percent
points, a mean over weights 0.3, 0.5 and 0.7, and AT THE ENDS, over 0, 0.1, 0.9 and 1. HYPERVOLUME
is that of the points the method holds for its front, by their true scores, as a share of the
table's own. Cost is in full points: 1 is all selection items of all objectives at one point.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import statistics
import tempfile
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import optuna
from optuna.trial import create_trial

from backtrack.evaluate.engine import Engine
from backtrack.evaluate.objectives.objective import Objective
from backtrack.point import Point
from backtrack.recipe import ChoosingRecipe, Recipe, SearchSection
from backtrack.records import ObjectiveInfo
from backtrack.records.search import BegunSearch, Decision
from backtrack.selection.choice.rule import choose
from backtrack.selection.measure.evaluator import Evaluator
from backtrack.selection.measure.items import Items
from backtrack.selection.search.budget import Budget
from backtrack.selection.search.driver import Driver
from backtrack.selection.stats.distances import point_distances
from backtrack.selection.stats.front import hypervolume, pareto_front
from backtrack.selection.stats.scores import RoleScores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray


TABLES = Path(__file__).resolve().parent / "tables"
WEIGHTS = (0.3, 0.5, 0.7)
END_WEIGHTS = (0.0, 0.1, 0.9, 1.0)
COSTS = (2.5, 3.3, 4.4, 6.6, 8.8, 11.0)
SELECTION_ITEMS = 200
METHODS = ("grid", "random", "tpe", "nsga2", "gp", "ours")
PROFILES = ("uniform", "depth", "modules")


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A recorded table.

    Attributes:
        name: Its file's.
        points: Its points, the base first.
        distances: From the base, [points].
        scores: By objective's name, [points, items].
    """

    name: str
    points: tuple[Point, ...]
    distances: NDArray[np.float64]
    scores: dict[str, NDArray[np.float64]]

    @property
    def infos(self) -> tuple[ObjectiveInfo, ...]:
        return tuple(
            ObjectiveInfo.model_validate(
                {
                    "name": name,
                    "role": "target" if i == 0 else "general",
                    "kind": "examples",
                    "direction": "maximize",
                    "unit": "fraction",
                    "fingerprint": name,
                }
            )
            for i, name in enumerate(self.scores)
        )

    @property
    def truth(self) -> NDArray[np.float64]:
        """True target and general in points, [roles, points]."""
        means = [100 * scores.mean(axis=1) for scores in self.scores.values()]
        return np.array([means[0], np.mean(means[1:], axis=0)])

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(sorted({p.step for p in self.points if not p.is_base}))


@lru_cache
def load(name: str) -> Recorded:
    """A table by its file's name."""
    with np.load(TABLES / f"{name}.npz", allow_pickle=False) as file:
        names = [key.removeprefix("bits_") for key in file if key.startswith("bits_")]
        scores = {
            key: np.unpackbits(file[f"bits_{key}"], axis=1)[:, :num].astype(float)
            for key, num in zip(names, file["num_items"].tolist(), strict=True)
        }
        points = tuple(
            Point(step=int(step), alpha=float(alpha), profile=str(profile)).canonical
            for step, alpha, profile in zip(
                file["steps"], file["alphas"], _profiles(file), strict=True
            )
        )
        return Recorded(name, points, file["distances"], scores)


def _profiles(file: Any) -> Sequence[str]:
    """Of the points; older tables hold the uniform one only."""
    return file["profiles"].tolist() if "profiles" in file else ["uniform"] * len(file["steps"])


@lru_cache(maxsize=100_000)
def near(name: str, point: Point) -> Point:
    """The recorded point of a table nearest in strength, of the same step and kind of profile."""
    if point.is_base:
        return Point.base()
    kind = point.profile.partition("(")[0]
    same = [
        p
        for p in load(name).points
        if p.step == point.step and p.profile.partition("(")[0] == kind
    ]
    candidates = [Point.base(), *same]
    return candidates[int(point_distances([point, *candidates]).strength[0, 1:].argmin())]


@dataclasses.dataclass
class Replayed:
    """A table as a run to search: an objective a role, 200 selection items of each."""

    table: Recorded
    seed: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 17])
        self.items: dict[str, NDArray[np.int64]] = {}
        num_general = len(self.table.scores) - 1
        for i, (name, scores) in enumerate(self.table.scores.items()):
            num = SELECTION_ITEMS if i == 0 else SELECTION_ITEMS // num_general
            self.items[name] = rng.integers(scores.shape[1], size=num)
        self.whole = sum(len(items) for items in self.items.values())

    def means(self, point: Point) -> dict[str, float]:
        row = self.table.points.index(point)
        return {n: float(s[row, self.items[n]].mean()) for n, s in self.table.scores.items()}

    def roles(self, points: Iterable[Point]) -> NDArray[np.float64]:
        """Measured target and general in points on all selection items, [points, roles]."""
        found = []
        for point in points:
            means = list(self.means(point).values())
            found.append([100 * means[0], 100 * float(np.mean(means[1:]))])
        return np.array(found)


class Result(NamedTuple):
    """Mean regret of the points named for the weights inside and at the ends, share of the
    hypervolume held, and how often the base was named for the weights inside."""

    regret: float
    at_ends: float
    share: float
    is_base: float


def result_of(replayed: Replayed, named: Mapping[float, Point], held: Sequence[Point]) -> Result:
    """What the points named by weight and those held are truly worth."""
    table, truth = replayed.table, replayed.table.truth

    def regret(weights: Sequence[float]) -> float:
        utilities = {w: w * truth[0] + (1 - w) * truth[1] for w in weights}
        columns = {w: table.points.index(named[w]) for w in weights}
        return statistics.mean(float(u.max() - u[columns[w]]) for w, u in utilities.items())

    ends = [0, table.points.index(Point(step=table.steps[-1], alpha=1.0))]
    corner = float(truth[0, ends].min()), float(truth[1, ends].min())
    columns = [table.points.index(point) for point in held]
    held_truth = truth[:, columns]
    share = hypervolume(held_truth[0], held_truth[1], corner)
    share /= hypervolume(truth[0], truth[1], corner)
    is_base = statistics.mean(named[w].is_base for w in WEIGHTS)
    return Result(regret(WEIGHTS), regret(END_WEIGHTS), share, is_base)


def by_measured(replayed: Replayed, points: Sequence[Point]) -> Result:
    """What people do: the highest measured utility, and the measured front."""
    roles = replayed.roles(points)
    named = {
        w: points[int((w * roles[:, 0] + (1 - w) * roles[:, 1]).argmax())]
        for w in (*WEIGHTS, *END_WEIGHTS)
    }
    on_front = pareto_front(roles[:, 0], roles[:, 1])
    return result_of(replayed, named, [p for p, f in zip(points, on_front, strict=True) if f])


def grid(replayed: Replayed) -> dict[float, Result]:
    """The plain grid of 11 strengths: cost, then regret and hypervolume."""
    last = replayed.table.steps[-1]
    points = [Point(step=last, alpha=round(0.1 * i, 1)).canonical for i in range(11)]
    return {11.0: by_measured(replayed, points)}


def sampled(name: str, replayed: Replayed) -> dict[float, Result]:
    """A sampler of Optuna on all items, base and final checkpoint first."""
    samplers: dict[str, Callable[[], Any]] = {
        "random": lambda: optuna.samplers.RandomSampler(seed=replayed.seed),
        "tpe": lambda: optuna.samplers.TPESampler(
            seed=replayed.seed, multivariate=True, n_startup_trials=4
        ),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=replayed.seed, population_size=4),
        "gp": lambda: optuna.samplers.GPSampler(
            seed=replayed.seed, n_startup_trials=4, warn_independent_sampling=False
        ),
    }
    table = replayed.table
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=samplers[name]())
    space = {
        "step": optuna.distributions.IntDistribution(0, len(table.steps) - 1),
        "alpha": optuna.distributions.FloatDistribution(0.0, 1.2, step=0.05),
    }
    points = [Point.base(), Point(step=table.steps[-1])]
    for point, alpha in zip(points, (0.0, 1.0), strict=True):
        parameters = {"step": len(table.steps) - 1, "alpha": alpha}
        values = replayed.roles([point])[0].tolist()
        study.add_trial(create_trial(params=parameters, distributions=space, values=values))
    found: dict[float, Result] = {}
    for cost in range(3, 12):
        trial = study.ask(space)
        asked = Point(step=table.steps[trial.params["step"]], alpha=trial.params["alpha"])
        points.append(near(table.name, asked.canonical))
        study.tell(trial, replayed.roles(points[-1:])[0].tolist())
        found[float(cost)] = by_measured(replayed, list(dict.fromkeys(points)))
    return found


class RecordedEngine(Engine):
    """Goes to the recorded point nearest to the one asked for."""

    def __init__(self, table: Recorded) -> None:
        self.table = table
        self.form, self.curve, self.tokenizer = "attached", "native", None
        self._point = Point.base()
        self.num_tokens = 0
        itself: Any = self
        self.language_model = self.placed = itself

    @property
    def point(self) -> Point:
        return self._point

    def noting(self) -> Any:
        return contextlib.nullcontext({})

    def place(self, point: Point) -> None:
        self._point = point

    def distance(self, point: Point) -> float:
        row = self.table.points.index(near(self.table.name, point))
        return float(self.table.distances[row])


class Rows(Objective):
    """An objective that reads its scores from the table."""

    def __init__(self, info: ObjectiveInfo, replayed: Replayed) -> None:
        self.info = info
        self._replayed = replayed
        num = len(replayed.items[info.name])
        self.item_ids = tuple(f"{info.name}/{i:04d}" for i in range(num))

    def measure(self, model: Any, item_ids: Sequence[str]) -> tuple[float, ...]:
        table = self._replayed.table
        row = table.points.index(near(table.name, model.point))
        numbers = [int(item_id.rpartition("/")[2]) for item_id in item_ids]
        drawn = self._replayed.items[self.info.name][numbers]
        return tuple(table.scores[self.info.name][row, drawn].tolist())


class InMemory:
    """What a search asks of its study, without a database."""

    def __init__(self) -> None:
        self.sampler_notes: dict[str, dict[str, Any]] = {}

    def notes(self) -> dict[str, dict[str, Any]]:
        return self.sampler_notes

    def known(self) -> set[str]:
        return set()

    def add(self, decision: Decision, observed: Any, attributes: Any) -> None:
        if decision.notes:
            self.sampler_notes[str(decision.evaluation.point)] = decision.notes


def ours(replayed: Replayed, cost: float, **section: Any) -> dict[float, Result]:
    """The search as it is, its study and records kept in memory; then the rule of choosing."""
    table = replayed.table
    search = SearchSection.model_validate(
        {
            "items": {"selection": SELECTION_ITEMS, "report": 2},
            "budget": {"items": int(cost * replayed.whole)},
            "seed": replayed.seed,
            **section,
        }
    )
    recipe = Recipe.model_validate({"name": "replay", "base": "replay", "search": search})
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
    objectives: Any = [Rows(info, replayed) for info in table.infos]
    evaluator = Evaluator(run, None, RecordedEngine(table), objectives)
    # Every item drawn is for selection: the truth takes the place of the report.
    drawn = {o.info.name: tuple(sorted(o.item_ids)) for o in objectives}
    evaluator._items = Items(search, drawn, {})
    study: Any = InMemory()
    Driver(evaluator, study, Budget(search.budget), begun(search.trials), None).run()
    return {cost: by_rule(replayed, evaluator)}


def begun(trials: int) -> BegunSearch:
    return BegunSearch(key="", asked="", trials=trials, num_before=0, created="")


def by_rule(replayed: Replayed, evaluator: Evaluator) -> Result:
    """The points `select` names for each weight, and all it names or shows on the front."""
    table = evaluator.table(evaluator.setting("selection"))
    scores = RoleScores(table, replayed.seed, 1000)
    is_feasible = np.ones(len(table.points), dtype=bool)
    chosen = {
        w: table.points[choose(scores.smoothed.at(w), is_feasible).chosen]
        for w in sorted({*WEIGHTS, *END_WEIGHTS, *np.linspace(0, 1, 11).round(1).tolist()})
    }
    on_front = np.flatnonzero(scores.smoothed.is_on_front)
    held = dict.fromkeys([*chosen.values(), *(table.points[i] for i in on_front)])
    named = {w: near(replayed.table.name, point) for w, point in chosen.items()}
    return result_of(replayed, named, [near(replayed.table.name, p) for p in held])


OF_OURS: dict[str, dict[str, Any]] = {"ours": {}, "profiles": {"profiles": PROFILES}}
"""Changes to the search's section."""


def one(job: tuple[str, str, int, float]) -> tuple[str, str, dict[float, Result]]:
    """One method on one table under one seed."""
    method, name, seed, cost = job
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    replayed = Replayed(load(name), seed)
    if method == "grid":
        found = grid(replayed)
    elif method in OF_OURS:
        found = ours(replayed, cost, **OF_OURS[method])
    else:
        found = sampled(method, replayed)
    return method, name, found


def show(results: dict[tuple[str, str, float], list[Result]]) -> None:
    """Means of the results by table, method and cost, with standard errors."""
    heads = ("regret", "at the ends", "hypervolume", "base named")
    print(f"{'table':<13} {'method':<8} cost    n" + "".join(f"{head:>18}" for head in heads))
    for (table, method, cost), values in sorted(results.items()):
        columns = np.array(values).T
        errors = columns.std(axis=1, ddof=min(1, len(values) - 1)) / math.sqrt(len(values))
        cells = [f"{m:9.3f} +- {e:.3f}" for m, e in zip(columns.mean(axis=1), errors, strict=True)]
        print(f"{table:<13} {method:<8} {cost:4.1f} {len(values):4d}" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--tables", default="full,lora,oft")
    parser.add_argument("--costs", default=",".join(map(str, COSTS)), help="of ours")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    costs = [float(cost) for cost in asked.costs.split(",")]
    jobs = [
        (method, table, seed, cost)
        for method in asked.methods.split(",")
        for table in asked.tables.split(",")
        for seed in range(asked.seeds)
        for cost in (costs if method in OF_OURS else [0.0])
    ]
    results: dict[tuple[str, str, float], list[Result]] = defaultdict(list)
    with ProcessPoolExecutor(asked.workers) as pool:
        for method, table, found in pool.map(one, jobs, chunksize=4):
            for cost, values in found.items():
                results[table, method, cost].append(values)
    show(results)


if __name__ == "__main__":
    main()
