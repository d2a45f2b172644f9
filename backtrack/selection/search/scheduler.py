"""Decide the next evaluation: an anchor, a point the sampler proposes, or a next rung.

One decision, from the recorded measurements alone:

1. While the budget allows the first rung of one more point (`EXPLORATION_SHARE`): the first anchor
   that nobody has measured; after the last anchor the sampler's next proposal, `trials` in all.
   With a budget, which may end before the last anchor, the first `FIRST_LOOKS` points lie far
   apart, the next anchor is then the one most likely to be the best (see `racing`), and every
   fourth new point is the sampler's (`SAMPLER_EVERY`).
2. Otherwise, if base and final checkpoint are measured: the next rung of the point most likely to
   be the best (see `racing`).
3. Otherwise nothing: the search ends when no other worker is measuring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backtrack.records import ROLES
from backtrack.selection.search.budget import Budget, Cost, Plan
from backtrack.selection.search.racing import (
    EXPLORATION_SHARE,
    Evaluation,
    likeliest_first,
    next_anchor,
    next_rung,
)
from backtrack.selection.search.sampler import propose
from backtrack.selection.search.space import Space, anchors, farthest_first
from backtrack.selection.stats.scores import axes_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.point import Point
    from backtrack.records.search import BegunSearch
    from backtrack.selection.measure.evaluator import Evaluator
    from backtrack.selection.search.observations import Observations
    from backtrack.selection.search.study import Ledger
    from backtrack.selection.stats.table import ScoreTable

FIRST_LOOKS = 6
"""Points that lie far apart, base and final checkpoint among them, before the likeliest ones."""
SAMPLER_EVERY = 4
"""Of the points that a budget allows besides base and final checkpoint, every fourth is the
sampler's."""
MAX_REPEATS = 40
"""Random proposals, after the sampler proposed a known point, before the space is exhausted."""


@dataclass(frozen=True)
class Decision:
    """What is measured next.

    Attributes:
        evaluation: The point and its rung.
        slot: Index among the sampler's proposals; None if it did not propose the point.
        notes: System attributes the sampler stored with its proposal.
    """

    evaluation: Evaluation
    slot: int | None = None
    notes: Mapping[str, object] | None = None


class Scheduler:
    """Decides the evaluations of one search.

    Attributes:
        anchors: Points that are always measured, in their order.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        observations: Observations,
        space: Space,
        ledger: Ledger,
        budget: Budget,
        begun: BegunSearch,
    ) -> None:
        self._evaluator = evaluator
        self._observations = observations
        self._space = space
        self._ledger = ledger
        self._budget = budget
        self._num_trials = begun.trials
        self._num_before = begun.num_before
        points = anchors(evaluator.run.steps, evaluator.section)
        self.anchors = farthest_first(points) if budget.is_bounded else points
        self._num_rungs = len(evaluator.rungs("selection"))
        self._num_known_when_exhausted = -1

    def plan(self) -> Plan:
        """What the search will still cost, by what is recorded now."""
        evaluator, spent = self._evaluator, self.spent()
        table = self._observations.table()
        sampled = [p for p, o in zip(table.points, table.origins, strict=True) if o == "sampler"]
        points = dict.fromkeys([*self.anchors, *sampled])
        num_new = max(self._num_trials - len(sampled), 0)
        missing = {p: evaluator.missing_items(p, "selection") for p in points}
        most = sum(missing.values()) + num_new * evaluator.num_items()
        first = {p: evaluator.missing_items(p, "selection", 0) for p in points}
        least = sum(missing[p] if p in evaluator.ends else first[p] for p in points)
        least += num_new * evaluator.num_items(rung=0)
        most = self._budget.most_items(spent.items + most, spent) - spent.items
        return Plan(
            num_points=len(points) + num_new,
            least_items=min(least, most),
            most_items=most,
            recorded_items=len(points) * evaluator.num_items() - sum(missing.values()),
            seconds=spent.for_items(most).seconds if spent.items else None,
        )

    def spent(self) -> Cost:
        """What this search has measured since it was begun."""
        return Cost.of(self._evaluator.measured_since(self._num_before))

    def next(self, running: Sequence[Point]) -> Decision | None:
        """The next evaluation; None if there is none.

        Args:
            running: Points being measured by this worker or others.
        """
        table = self._observations.table()
        has_ends = self._observations.has_ends(table)
        if self._may_explore(table, has_ends=has_ends):
            kinds = [self._next_anchor, self._propose] if has_ends else [self._next_anchor]
            if self._is_turn_of_sampler(table):
                kinds.reverse()
            for kind in kinds:
                decision = kind(table, running)
                if decision is not None:
                    return decision
        return self._next_rung(table, running) if has_ends else None

    def _is_turn_of_sampler(self, table: ScoreTable) -> bool:
        """Whether the sampler would have less than its share with one more anchor."""
        num_after = len(table.points) - len(self._evaluator.ends) + 1
        due = num_after // SAMPLER_EVERY
        return self._budget.is_bounded and table.origins.count("sampler") < due

    def _next_anchor(self, table: ScoreTable, running: Sequence[Point]) -> Decision | None:
        order: Sequence[Point] = self.anchors
        is_by_chance = self._budget.is_bounded and len(table.points) >= FIRST_LOOKS
        if is_by_chance and self._observations.has_ends(table):
            left = [point for point in order if point not in table.points]
            order = likeliest_first(self._observations.by_role(table), left) if left else ()
        anchor = next_anchor(order, table.points, running)
        return None if anchor is None else Decision(anchor)

    def _may_explore(self, table: ScoreTable, *, has_ends: bool) -> bool:
        """Whether the budget allows one more first rung without using the share of later rungs."""
        first_rung = self._evaluator.num_items(rung=0)
        spent = self.spent()
        if self._num_rungs == 1 or not has_ends:
            return self._budget.allows(spent, first_rung)
        # What was recorded before this search, such as an objective it shares, cost it nothing.
        explored = min(first_rung * len(table.points), spent.items)
        later = spent.items - explored
        due = (explored + first_rung) * (1 - EXPLORATION_SHARE) / EXPLORATION_SHARE
        return self._budget.allows(spent, first_rung + int(max(due - later, 0)))

    def _propose(self, table: ScoreTable, running: Sequence[Point]) -> Decision | None:
        """The sampler's next point; a random one if it proposes a known point."""
        num_recorded = sum(origin == "sampler" for origin in table.origins)
        slot = max(len(self._ledger.slots()), num_recorded)
        known = {*table.points, *running}
        if slot >= self._num_trials or len(known) == self._num_known_when_exhausted:
            return None
        history = self._observations.history(table, self._ledger.notes())
        new = [self._space.parameters_of(point) for point in running if point not in table.points]
        running_parameters = [parameters for parameters in new if parameters]
        directions = [axes_of(table)[role].direction for role in ROLES]
        section = self._evaluator.section
        for attempt in range(1 + MAX_REPEATS):
            parameters, notes = propose(
                self._space,
                section.model_copy(update={"sampler": "random"}) if attempt else section,
                directions,
                history,
                running_parameters,
                num_before=slot + attempt * self._num_trials,
            )
            point = self._space.point_at(parameters)
            if point not in known:
                return Decision(Evaluation(point, 0, "sampler"), slot, notes)
        self._num_known_when_exhausted = len(known)
        return None

    def _next_rung(self, table: ScoreTable, running: Sequence[Point]) -> Decision | None:
        spent = self.spent()
        is_affordable = [
            self._budget.allows(spent, self._evaluator.num_items(rung=rung))
            for rung in range(self._num_rungs)
        ]
        done = [self._evaluator.rungs_done(point) for point in table.points]
        is_open = [rung < self._num_rungs and is_affordable[rung] for rung in done]
        if not any(is_open):
            return None
        evaluation = next_rung(
            self._observations.by_role(table),
            done,
            is_open,
            running,
            # Bonferroni: the level is shared by the comparisons after each rung but the last.
            level=1 - (1 - self._evaluator.section.racing.level) / max(self._num_rungs - 1, 1),
            ends=self._evaluator.ends,
        )
        return None if evaluation is None else Decision(evaluation)
