"""Search the path: measure the anchors, then points a sampler proposes, rung by rung.

Promised: every measurement is in `measurements.jsonl` before the next begins. That file decides
everything but what the search may cost, which `search.json` says; `study.db` only coordinates the
workers and can be deleted at any time. An item already measured at a point is never measured
again. One worker's search proposes the same points whether or not it was interrupted. Several
workers, on one machine or on several, share a search through its storage; a second search of the
run is refused.

How: each decision follows from the recorded measurements alone (see `scheduler`), so a search
resumes where it stopped, and any worker can take the next evaluation.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backtrack.errors import RunError, UsageError
from backtrack.records import ROLES
from backtrack.run.directory import SEARCH_LOCK
from backtrack.run.files import hold_lock
from backtrack.selection.measure.evaluator import Evaluator
from backtrack.selection.measure.progress import Meter, Progress
from backtrack.selection.search.baselines import measure_baselines
from backtrack.selection.search.begun import asked_extent, begin_search, finish_search, search_key
from backtrack.selection.search.budget import Budget, Plan
from backtrack.selection.search.observations import Observations
from backtrack.selection.search.scheduler import Scheduler
from backtrack.selection.search.space import Space
from backtrack.selection.search.study import STUDY, open_ledger, quiet
from backtrack.selection.stats.utility import role_axis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from backtrack.evaluate.engine import Engine
    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.path.placement import Placement
    from backtrack.recipe import BudgetSection, Recipe
    from backtrack.records import Measurement
    from backtrack.records.search import BegunSearch
    from backtrack.run.directory import Run
    from backtrack.selection.search.study import Claim, Ledger

__all__ = ["Progress", "search"]

SECONDS_BETWEEN_POLLS = 1.0
"""Wait of a worker that has nothing to measure while others still measure."""


def search(  # noqa: PLR0913  # the front door: every argument but the run is optional
    run: Run,
    *,
    placement: Placement | Engine | None = None,
    recipe: Recipe | None = None,
    objectives: Sequence[Objective] | None = None,
    trials: int | None = None,
    budget: BudgetSection | None = None,
    storage: str | None = None,
    is_shared: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Measurement]:
    """Measure the anchors and the sampler's points on the selection items; resumes a search.

    Args:
        run: A run with at least one checkpoint.
        placement: The live model or a started engine; started when needed if not given.
        recipe: What to measure; the run's own if not given.
        objectives: Objectives already built, in place of the recipe's.
        trials: Points the sampler adds, earlier searches included; the recipe's if not given.
        budget: What the search may cost; the recipe's if not given.
        storage: URL of the database that workers share; the recipe's, else the run's `study.db`.
        is_shared: Other workers search this run too.
        on_plan: Called once, before anything is measured.
        on_progress: Called before each objective and after each rung.

    Returns:
        Measurements of this search's setting, in the order of measuring.

    Raises:
        UsageError: No objectives are given, or the budget is too small for base and final
            checkpoint.
        RunError: Another search of this run is running, or the storage does not answer.
        ObjectiveError: An objective cannot be measured. Earlier measurements stay recorded.
    """
    if trials is not None and trials < 0:
        raise UsageError(f"trials must be 0 or more, got {trials}.")
    evaluator = Evaluator(run, recipe, placement, objectives)
    section = evaluator.section
    extent = Extent(
        section.trials if trials is None else trials,
        section.budget if budget is None else budget,
        storage or section.storage,
        is_shared=is_shared,
    )
    search_by(evaluator, extent, on_plan, on_progress)
    return evaluator.current


@dataclass(frozen=True)
class Extent:
    """How far a search goes, and who shares it.

    Attributes:
        trials: Points the sampler adds.
        budget: What it may cost.
        storage: URL of the database that workers share; None is the run's `study.db`.
        is_shared: Whether other workers search the run too.
    """

    trials: int
    budget: BudgetSection
    storage: str | None = None
    is_shared: bool = False


def search_by(
    evaluator: Evaluator,
    extent: Extent,
    on_plan: Callable[[Plan], None] | None,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Search by an evaluator; see `search`."""
    run, setting = evaluator.run, evaluator.setting("selection")
    is_shared = extent.is_shared or extent.storage is not None
    with search_lock(run, is_shared=is_shared), quiet():
        limits = Budget(extent.budget, evaluator.section.workers)
        limits.require(sum(evaluator.missing_items(p, "selection", 0) for p in evaluator.ends))
        key = search_key(evaluator.section, setting)
        asked = asked_extent(evaluator.section)
        recorded = len(evaluator.recorded)
        begun = begin_search(run, key, asked, extent.trials, extent.budget, recorded)
        with _open_study(evaluator, extent.storage) as ledger:
            worker = Worker(evaluator, ledger, limits, begun, on_progress, is_alone=not is_shared)
            if on_plan is not None:
                on_plan(worker.plan())
            worker.work()
            measure_baselines(evaluator, ledger)
        finish_search(run, begun)


class Worker:
    """Measures one evaluation after another until none is left or the budget is spent."""

    def __init__(
        self,
        evaluator: Evaluator,
        ledger: Ledger,
        budget: Budget,
        begun: BegunSearch,
        on_progress: Callable[[Progress], None] | None,
        *,
        is_alone: bool,
    ) -> None:
        self._evaluator = evaluator
        self._ledger = ledger
        self._is_alone = is_alone
        space = Space.of(evaluator.run.steps, evaluator.section)
        self._observations = Observations(evaluator, space)
        self._scheduler = Scheduler(evaluator, self._observations, space, ledger, budget, begun)
        self._meter = Meter(0, on_progress)

    def plan(self) -> Plan:
        """What the search will still cost."""
        return self._scheduler.plan()

    def work(self) -> None:
        """Measure until there is nothing left to do."""
        self._ledger.clear_stale(is_alone=self._is_alone)
        self._add_measured_points()
        while True:
            # Before catching up: an evaluation that ends in between is then already recorded.
            running = [point for point, _ in self._ledger.under_way()]
            self._catch_up()
            decision = self._scheduler.next(running)
            if decision is None:
                if not running:
                    break
                time.sleep(SECONDS_BETWEEN_POLLS)
                continue
            claim = self._ledger.claim(decision.evaluation, decision.slot, decision.notes)
            if claim is not None:
                self._measure(claim)
        self._add_measured_points()
        self._meter.expect(0)
        self._meter.ends(self._evaluator.ends[-1])

    def _measure(self, claim: Claim) -> None:
        """Measure a claimed evaluation and close its trial."""
        point, rung = claim.evaluation.point, claim.evaluation.rung
        with self._ledger.alive(claim):
            # Another worker may have measured it between the decision and the claim.
            self._catch_up()
            num_recorded = len(self._evaluator.recorded)
            self._meter.expect(self._scheduler.plan().most_items)
            if self._is_alone and rung == 0:
                measured = self._observations.table().points
                self._evaluator.expect([p for p in self._scheduler.anchors if p not in measured])
            self._evaluator.measure(point, "selection", claim.evaluation.origin, self._meter, rung)
            self._ledger.carry(claim, self._evaluator.recorded[num_recorded:])
            observed, attributes = self._observations.for_study(point, self._observations.table())
        self._ledger.settle(claim, observed, attributes)

    def _catch_up(self) -> None:
        """Read what other workers measured, and fail the trials of those that died."""
        if self._is_alone:
            return
        self._ledger.clear_stale(is_alone=False)
        self._evaluator.merge(self._ledger.carried())

    def _add_measured_points(self) -> None:
        """Add points with all items to a study that lacks them: a new or a deleted `study.db`."""
        table = self._observations.table()
        if not self._observations.has_ends(table):
            return
        known = self._ledger.known()
        for point, origin in zip(table.points, table.origins, strict=True):
            observed, attributes = self._observations.for_study(point, table)
            if observed is not None and str(point) not in known:
                self._ledger.add(point, origin, observed, attributes)


def _open_study(evaluator: Evaluator, storage: str | None) -> AbstractContextManager[Ledger]:
    """The study of this search's setting; another setting has another study."""
    setting = evaluator.setting("selection")
    space = Space.of(evaluator.run.steps, evaluator.section)
    return open_ledger(
        storage or f"sqlite:///{(evaluator.run.path / STUDY).resolve()}",
        f"search-{search_key(evaluator.section, setting)}",
        [role_axis(setting.objectives, role).direction for role in ROLES],
        space,
        evaluator.section.patience_seconds,
    )


@contextmanager
def search_lock(run: Run, *, is_shared: bool) -> Iterator[None]:
    """Lock the run against a second search; workers of one search share the lock.

    Raises:
        RunError: Another search holds it.
    """
    with hold_lock(run.path / SEARCH_LOCK, is_shared=is_shared) as is_free:
        if not is_free:
            raise RunError(
                f"another search of {run.path} is running. Wait until it ends, or stop it: "
                "the next search resumes where it stopped. To run several workers of one search, "
                "start it with --workers or --storage. To choose from what is measured so far: "
                "`backtrack select --as-is`."
            )
        yield
