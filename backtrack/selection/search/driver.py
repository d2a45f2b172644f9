"""Search the path: measure the anchors, then points a sampler proposes, rung by rung.

Promised: every measurement is in `measurements.jsonl` as soon as it is known. That file decides
everything but what the search may cost and what is under way, which `search.json` says; the study
is for dashboards, and can be deleted at any time. An item already measured at a point is never
measured again. The same points are proposed whether or not the search was interrupted, and by
however many actors they are measured. A second search of the run is refused.

How: this process decides and is the only writer of the run's files; measurers answer (see
`backtrack.selection.measurers.executor`). It decides in rounds, each from what is recorded alone
(see `scheduler`), and writes a round down before it is measured.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backtrack.errors import RunError, UsageError
from backtrack.records import ROLES
from backtrack.records.search import Decision, Evaluation
from backtrack.run.directory import SEARCH_LOCK
from backtrack.run.files import hold_lock
from backtrack.selection.measure.evaluator import Evaluator
from backtrack.selection.measure.progress import Meter, Progress
from backtrack.selection.search.baselines import measure_baselines
from backtrack.selection.search.begun import (
    asked_extent,
    begin_round,
    begin_search,
    finish_search,
    search_key,
)
from backtrack.selection.search.budget import Budget, Plan
from backtrack.selection.search.observations import Observations
from backtrack.selection.search.scheduler import Scheduler
from backtrack.selection.search.space import Space
from backtrack.selection.search.study import STUDY, open_study, quiet
from backtrack.selection.stats.utility import role_axis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from backtrack.evaluate.engine import Engine
    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.path.placement import Placement
    from backtrack.recipe import BudgetSection, ClusterSection, Recipe
    from backtrack.records import Measurement
    from backtrack.records.search import BegunSearch
    from backtrack.run.directory import Run
    from backtrack.selection.search.study import Study

__all__ = ["Progress", "search"]


def search(  # noqa: PLR0913  # the front door: every argument but the run is optional
    run: Run,
    *,
    placement: Placement | Engine | None = None,
    recipe: Recipe | None = None,
    objectives: Sequence[Objective] | None = None,
    trials: int | None = None,
    budget: BudgetSection | None = None,
    storage: str | None = None,
    cluster: ClusterSection | None = None,
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
        storage: URL of the study's database; the recipe's, else the run's `study.db`.
        cluster: By how many processes, and where, it is measured; the recipe's if not given.
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
    evaluator = Evaluator(run, recipe, placement, objectives, cluster)
    section = evaluator.section
    extent = Extent(
        section.trials if trials is None else trials,
        section.budget if budget is None else budget,
        storage or section.storage,
    )
    with closing(evaluator):
        search_by(evaluator, extent, on_plan, on_progress)
    return evaluator.current


@dataclass(frozen=True)
class Extent:
    """How far a search goes, and where its study is.

    Attributes:
        trials: Points the sampler adds.
        budget: What it may cost.
        storage: URL of the study's database; None is the run's `study.db`.
    """

    trials: int
    budget: BudgetSection
    storage: str | None = None


def search_by(
    evaluator: Evaluator,
    extent: Extent,
    on_plan: Callable[[Plan], None] | None,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Search by an evaluator; see `search`."""
    run = evaluator.run
    with search_lock(run), quiet():
        setting = evaluator.setting("selection")
        limits = Budget(extent.budget, evaluator.num_measurers)
        limits.require(sum(evaluator.missing_items(p, "selection", 0) for p in evaluator.ends))
        key = search_key(evaluator.section, setting)
        asked = asked_extent(evaluator.section)
        recorded = len(evaluator.recorded)
        begun = begin_search(run, key, asked, extent.trials, extent.budget, recorded)
        with _open_study(evaluator, extent.storage) as study:
            driver = Driver(evaluator, study, limits, begun, on_progress)
            if on_plan is not None:
                on_plan(driver.plan())
            driver.run()
            measure_baselines(evaluator, study)
        finish_search(run, begun)


class Driver:
    """Has one round of evaluations after another measured, until none is left to decide."""

    def __init__(
        self,
        evaluator: Evaluator,
        study: Study,
        budget: Budget,
        begun: BegunSearch,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._evaluator = evaluator
        self._study = study
        self._begun = begun
        space = Space.of(evaluator.run.steps, evaluator.section)
        self._observations = Observations(evaluator, space)
        self._scheduler = Scheduler(evaluator, self._observations, space, study, budget, begun)
        self._meter = Meter(0, on_progress)

    def plan(self) -> Plan:
        """What the search will still cost."""
        return self._scheduler.plan()

    def run(self) -> None:
        """Measure until there is nothing left to do."""
        self._add_measured_points(is_over=False)
        decisions = self._under_way() or self._scheduler.round()
        while decisions:
            begin_round(self._evaluator.run, self._begun, decisions)
            self._measure(decisions)
            decisions = self._scheduler.round()
        self._add_measured_points(is_over=True)
        self._meter.expect(0)
        self._meter.ends(self._evaluator.ends[-1])

    def _under_way(self) -> list[Decision]:
        """Decisions of a round that was begun before and is not all measured."""
        each = ((d, d.evaluation) for d in self._begun.round)
        missing = self._evaluator.missing_items
        return [d for d, e in each if missing(e.point, "selection", e.rung)]

    def _measure(self, decisions: Sequence[Decision]) -> None:
        """Measure a round."""
        self._meter.expect(self._scheduler.plan().most_items)
        by_evaluation = {each.evaluation: each for each in decisions}

        def add(evaluation: Evaluation) -> None:
            noted = self._observations.for_study(evaluation.point, is_over=False)
            self._study.add(by_evaluation[evaluation], noted)

        self._evaluator.measure(list(by_evaluation), "selection", self._meter, add)

    def _add_measured_points(self, *, is_over: bool) -> None:
        """End the trials of points with all items, and of all others if the search is over.

        A study that lacks them, a new or a deleted `study.db`, gets them.
        """
        table = self._observations.table()
        if not self._observations.has_ends(table):
            return
        complete, ended = self._study.complete(), self._study.ended()
        for point, origin in zip(table.points, table.origins, strict=True):
            noted = self._observations.for_study(point, is_over=is_over)
            known = complete if noted.is_whole else ended
            if noted.observed is not None and str(point) not in known:
                self._study.add(Decision(Evaluation(point, None, origin)), noted)


def _open_study(evaluator: Evaluator, storage: str | None) -> AbstractContextManager[Study]:
    """The study of this search's setting; another setting has another study."""
    setting = evaluator.setting("selection")
    space = Space.of(evaluator.run.steps, evaluator.section)
    return open_study(
        storage or f"sqlite:///{(evaluator.run.path / STUDY).resolve()}",
        f"search-{search_key(evaluator.section, setting)}",
        {role: role_axis(setting.objectives, role) for role in ROLES},
        space,
    )


@contextmanager
def search_lock(run: Run) -> Iterator[None]:
    """Lock the run against a second search.

    Raises:
        RunError: Another search holds it.
    """
    with hold_lock(run.path / SEARCH_LOCK) as is_free:
        if not is_free:
            raise RunError(
                f"another search of {run.path} is running. Wait until it ends, or stop it: "
                "the next search resumes where it stopped. To measure by several processes, give "
                "the one search --workers. To choose from what is measured so far: "
                "`backtrack select --as-is`."
            )
        yield
