"""Search the path: anchors first, then points a sampler proposes, part after part of the items.

Promised: every measurement is in `measurements.jsonl` before the next begins, and that file is the
truth: `study.db` holds what workers need of each other and can be deleted at any time. An item
already measured at a point is never measured again. One worker's search proposes the same points
whether or not it was interrupted. Several workers, on one machine or on several, share a search
through its storage; a second search that does not is refused.

How: what comes next is decided from the record alone (see `racing`), so a search goes on where it
stopped, and any worker can take the next unit of work.
"""

from __future__ import annotations

import fcntl
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from backtrack.errors import RunError, UsageError
from backtrack.records import ROLES
from backtrack.records.selection import Constraints
from backtrack.run.directory import SEARCH_LOCK
from backtrack.selection.measure.evaluator import Evaluator
from backtrack.selection.measure.progress import Meter, Progress
from backtrack.selection.search.baselines import compare
from backtrack.selection.search.budget import Budget, Plan, Spent
from backtrack.selection.search.racing import EXPLORED, NUM_RESAMPLES, Unit, next_deep, next_first
from backtrack.selection.search.sampler import Past, propose
from backtrack.selection.search.space import Space, anchors, spread
from backtrack.selection.search.study import STUDY, open_ledger, quiet, study_name
from backtrack.selection.stats.scores import RoleScores, axes_of
from backtrack.selection.stats.utility import role_axis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.evaluate.vllm.placement import VllmPlacement
    from backtrack.path.placement import Placement
    from backtrack.point import Point
    from backtrack.recipe import BudgetSection, Recipe
    from backtrack.records import Measurement
    from backtrack.run.directory import Run
    from backtrack.selection.search.study import Claim, Ledger
    from backtrack.selection.stats.table import ScoreTable

__all__ = ["Progress", "search"]

SECONDS_BETWEEN_LOOKS = 1.0
"""How often a worker without work looks whether others are done."""
MAX_REPEATS = 40
"""Draws at random, after the sampler named a known point, before the space counts as exhausted."""


def search(  # noqa: PLR0913  # the front door: every argument but the run is optional
    run: Run,
    *,
    placement: Placement | VllmPlacement | None = None,
    recipe: Recipe | None = None,
    objectives: Sequence[Objective] | None = None,
    trials: int | None = None,
    budget: BudgetSection | None = None,
    storage: str | None = None,
    is_shared: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Measurement]:
    """Measure the anchors and the sampler's points on the selection items; resumes.

    Args:
        run: A run with at least one checkpoint.
        placement: Its live model; loaded if not given and something must be measured.
        recipe: What to measure; the run's own if not given.
        objectives: Ready-made ones, in place of the recipe's.
        trials: Points the sampler adds, earlier searches counted; the recipe's if not given.
        budget: What it may cost; the recipe's if not given.
        storage: URL of the database that workers share; the recipe's, else the run's `study.db`.
        is_shared: Other workers search this run too.
        on_plan: Called once, before anything is measured.
        on_progress: Called before each objective and after each part.

    Returns:
        Measurements of this search's setting, in the order of measuring.

    Raises:
        UsageError: Nothing says what to measure, or the budget does not reach for the ends.
        RunError: Another search of this run is going on, or the storage does not answer.
        ObjectiveError: An objective cannot be measured. What was measured stays.
    """
    if trials is not None and trials < 0:
        raise UsageError(f"trials must be 0 or more, got {trials}.")
    evaluator = Evaluator(run, recipe, placement, objectives)
    storage = storage or evaluator.section.storage
    is_shared = is_shared or storage is not None
    with holding(run, is_shared=is_shared), quiet():
        num_trials = evaluator.section.trials if trials is None else trials
        limits = Budget(
            evaluator.section.budget if budget is None else budget, evaluator.section.workers
        )
        limits.require(2 * evaluator.num_items(rung=0))
        with _ledger(evaluator, storage) as ledger:
            worker = Worker(
                evaluator, ledger, limits, num_trials, on_progress, is_alone=not is_shared
            )
            if on_plan is not None:
                on_plan(worker.plan())
            worker.work()
            compare(evaluator, ledger)
        return evaluator.fitting


class Worker:
    """Takes unit after unit until none is left, or the budget is spent."""

    def __init__(  # made in one place
        self,
        evaluator: Evaluator,
        ledger: Ledger,
        budget: Budget,
        num_trials: int,
        on_progress: Callable[[Progress], None] | None,
        *,
        is_alone: bool,
    ) -> None:
        self._evaluator = evaluator
        self._ledger = ledger
        self._budget = budget
        self._num_trials = num_trials
        self._is_alone = is_alone
        self._space = Space.of(evaluator.run.steps, evaluator.section)
        points = anchors(evaluator.run.steps, evaluator.section)
        self._anchors = spread(points) if budget.is_bounded else points
        self._rungs = evaluator.rungs("selection")
        self._meter = Meter(0, on_progress)
        self._num_known_when_exhausted = -1

    def plan(self) -> Plan:
        """What the search comes to."""
        spent = self._spent()
        num_points = len(self._anchors) + self._num_trials
        whole, first = self._evaluator.num_items(), self._evaluator.num_items(rung=0)
        asked = num_points * whole
        most = self._budget.most_items(asked, spent)
        return Plan(
            num_points=num_points,
            least_items=min(2 * whole + (num_points - 2) * first, most),
            most_items=most,
            done_items=min(spent.items, most),
            seconds=spent.for_items(max(most - spent.items, 0)).seconds if spent.items else None,
        )

    def work(self) -> None:
        """Go on until there is nothing left to do."""
        self._ledger.clear_stale(is_alone=self._is_alone)
        self._tell_the_measured()
        while True:
            # Asked before catching up: what was under way and is not any more is then on record.
            taken = self._ledger.under_way()
            self._catch_up()
            unit, slot, notes = self._next(taken)
            if unit is None:
                if not taken:
                    break
                time.sleep(SECONDS_BETWEEN_LOOKS)
                continue
            claim = self._ledger.claim(unit, slot, notes)
            if claim is not None:
                self._do(claim)
        self._tell_the_measured()
        self._meter.expect(self._spent().items, self._spent().items)
        self._meter.ends(self._table().points[-1])

    def _do(self, claim: Claim) -> None:
        """Measure a claimed unit, and close it."""
        unit = claim.unit
        with self._ledger.alive(claim):
            # Another worker may have measured it since this one looked.
            self._catch_up()
            before = len(self._evaluator.recorded)
            self._expect()
            if self._is_alone and unit.rung == 0:
                known = self._table().points
                self._evaluator.expect([point for point in self._anchors if point not in known])
            self._evaluator.measure(unit.point, "selection", unit.origin, self._meter, unit.rung)
            self._ledger.carry(claim, self._evaluator.recorded[before:])
            past, attributes = self._past(unit.point)
        self._ledger.settle(claim, past, attributes)

    def _catch_up(self) -> None:
        """Take in what others measured, and fail the trials of those that are gone."""
        if self._is_alone:
            return
        self._ledger.clear_stale(is_alone=False)
        self._evaluator.take_in(self._ledger.carried())

    def _next(
        self, taken: Mapping[tuple[Point, int], object]
    ) -> tuple[Unit | None, int | None, Mapping[str, object] | None]:
        """The next unit; for a sampler's proposal its turn and the sampler's notes too."""
        table = self._table()
        if self._may_explore(table):
            first = next_first(self._anchors, table.points, {point for point, _ in taken})
            if first is not None:
                return first, None, None
            proposal = self._propose(table, taken)
            if proposal is not None:
                return proposal
        if not table.knows(self._evaluator.ends):
            return None, None, None
        return self._deep(table, taken), None, None

    def _deep(self, table: ScoreTable, taken: Mapping[tuple[Point, int], object]) -> Unit | None:
        spent = self._spent()
        done = [self._evaluator.rungs_done(point) for point in table.points]
        affordable = [
            self._budget.allows(spent, self._evaluator.num_items(rung=rung))
            for rung in range(len(self._rungs))
        ]
        is_open = [d < len(affordable) and affordable[d] for d in done]
        if not any(is_open):
            return None
        racing = self._evaluator.section.racing
        level = 1 - (1 - racing.level) / max(len(self._rungs) - 1, 1)
        points = {point for point, _ in taken}
        return next_deep(self._weighted(table), done, is_open, points, level, self._evaluator.ends)

    def _may_explore(self, table: ScoreTable) -> bool:
        """Whether one more first look leaves room for what deepening is to get."""
        first = self._evaluator.num_items(rung=0)
        spent = self._spent()
        if len(self._rungs) == 1 or not table.knows(self._evaluator.ends):
            return self._budget.allows(spent, first)
        explored = first * len(table.points)
        deepened = spent.items - explored
        kept = max((explored + first) * (1 - EXPLORED) / EXPLORED - deepened, 0)
        return self._budget.allows(spent, first + int(kept))

    def _propose(
        self, table: ScoreTable, taken: Mapping[tuple[Point, int], object]
    ) -> tuple[Unit, int, Mapping[str, object]] | None:
        """The sampler's next point; where it names a known one, a point drawn at random."""
        by_record = sum(origin == "sampler" for origin in table.origins)
        slot = max(len(self._ledger.slots()), by_record)
        known = {*table.points, *(point for point, _ in taken)}
        if slot >= self._num_trials or len(known) == self._num_known_when_exhausted:
            return None
        if not table.knows(self._evaluator.ends):
            return None
        history = self._history(table)
        running = [self._space.place_of(point) for point, _ in taken if point not in table.points]
        rest = [place for place in running if place]
        random = self._evaluator.section.model_copy(update={"sampler": "random"})
        directions = [axes_of(table)[role].direction for role in ROLES]
        for attempt in range(1 + MAX_REPEATS):
            section = random if attempt else self._evaluator.section
            before = slot + attempt * self._num_trials
            place, notes = propose(self._space, section, directions, history, rest, before)
            point = self._space.point_at(place)
            if point not in known:
                return Unit(point, 0, "sampler"), slot, notes
        self._num_known_when_exhausted = len(known)
        return None

    def _history(self, table: ScoreTable) -> list[Past]:
        """The measured points as the sampler is told of them, the base at several steps."""
        notes = self._ledger.notes()
        history: list[Past] = []
        for point in table.points:
            past, _ = self._past(point, table, is_whole=False)
            if past is not None and past.place:
                left = notes.get(str(point), {})
                places = self._space.places_of_base() if point.is_base else [past.place]
                history += [Past(p, past.values, past.constraints, left) for p in places]
        return history

    def _past(
        self, point: Point, table: ScoreTable | None = None, *, is_whole: bool = True
    ) -> tuple[Past | None, dict[str, object]]:
        """What the study holds of a point: values where it has all items, and attributes."""
        table = table or self._table()
        if point.canonical not in table.points:
            return None, {}
        column = table.column(point)
        share = float(table.shares[column])
        attributes: dict[str, object] = {
            "share of items": round(share, 4),
            **{name: float(means[column]) for name, means in table.means.items()},
        }
        if not table.knows(self._evaluator.ends) or (is_whole and share < 1):
            return None, attributes
        weighted = self._weighted(table)
        scores = [float(weighted.role(role)[column]) for role in ROLES]
        attributes |= dict(zip(ROLES, scores, strict=True))
        base, final = (table.column(end) for end in self._evaluator.ends)
        constraints = {
            bound.name: bound.lowest - float(bound.values[column])
            for bound in weighted.bounds(base, final, self._constraints)
        }
        return Past(self._space.place_of(point) or {}, scores, constraints), attributes

    def _tell_the_measured(self) -> None:
        """Tell the study of whole points it does not know: adopted, or of earlier searches."""
        table = self._table()
        if not table.knows(self._evaluator.ends):
            return
        known = self._ledger.known()
        for point, origin in zip(table.points, table.origins, strict=True):
            past, attributes = self._past(point, table)
            if past is not None and str(point) not in known:
                self._ledger.add(point, origin, past, attributes)

    @property
    def _constraints(self) -> Constraints:
        recipe = self._evaluator.recipe
        return recipe.select if recipe else Constraints()

    def _expect(self) -> None:
        """Tell the meter what the search comes to as things stand."""
        plan = self.plan()
        self._meter.expect(plan.most_items, plan.done_items)

    def _spent(self) -> Spent:
        return Spent.on(self._evaluator.fitting)

    def _table(self) -> ScoreTable:
        return self._evaluator.table(self._evaluator.setting("selection"))

    def _weighted(self, table: ScoreTable) -> RoleScores:
        seed = self._evaluator.section.seed
        return RoleScores.of_selection(table, self._evaluator.run.final, seed, NUM_RESAMPLES)


def _ledger(evaluator: Evaluator, storage: str | None) -> AbstractContextManager[Ledger]:
    """The study of this search's setting."""
    setting = evaluator.setting("selection")
    space = Space.of(evaluator.run.steps, evaluator.section)
    name = study_name(
        [
            {step: evaluator.run.entry(step).sha256 for step in evaluator.run.steps},
            [space.highest, space.profiles, evaluator.section.multipliers],
            [setting.form, setting.curve],
            [(o.name, o.role, o.weight, o.fingerprint) for o in setting.objectives],
            setting.item_ids,
        ]
    )
    return open_ledger(
        storage or f"sqlite:///{(evaluator.run.path / STUDY).resolve()}",
        name,
        [role_axis(setting.objectives, role).direction for role in ROLES],
        space,
        evaluator.section.patience_seconds,
    )


@contextmanager
def holding(run: Run, *, is_shared: bool) -> Iterator[None]:
    """Hold the run against a second search; workers of one search hold it together.

    Raises:
        RunError: One is going on.
    """
    with (run.path / SEARCH_LOCK).open("w") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another search of {run.path} is going on. Wait until it ends, or stop it: "
                "the next one goes on where it stopped. Workers that share one search are started "
                "with --workers or --storage."
            ) from error
        yield
