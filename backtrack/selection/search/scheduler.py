"""Decide the next evaluations: anchors, points the sampler proposes, and next rungs.

Decisions are made in rounds, from the recorded measurements alone: all of a round is measured
before the next is decided, so that the choice does not depend on how many measure, nor on which is
done first. A round is `search.round_size` decisions; the anchors of a search without a budget,
which depend on no measurement, are one round. One decision, given those of its round before it:

1. While the budget allows the first rung of one more point (`EXPLORATION_SHARE`): the first anchor
   that nobody has measured; after the last anchor the sampler's next proposal, `trials` in all.
   With a budget, which may end before the last anchor, the first `FIRST_LOOKS` points lie far
   apart, the next anchor is then the one most likely to be the best (see `racing`), and every
   fourth new point is the sampler's (`SAMPLER_EVERY`).
2. Otherwise, if base and final checkpoint are measured: the next rung of the point most likely to
   be the best (see `racing`).
3. Otherwise nothing: the round ends, and an empty round ends the search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack.records import ROLES
from backtrack.records.search import Decision, Evaluation
from backtrack.selection.search.budget import Budget, Cost, Plan
from backtrack.selection.search.racing import (
    EXPLORATION_SHARE,
    likeliest_first,
    next_anchor,
    next_rung,
)
from backtrack.selection.search.sampler import propose
from backtrack.selection.search.space import Space, anchors, farthest_first
from backtrack.selection.stats.scores import axes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.point import Point
    from backtrack.records.search import BegunSearch
    from backtrack.selection.measure.evaluator import Evaluator
    from backtrack.selection.search.observations import Observations
    from backtrack.selection.search.study import Study
    from backtrack.selection.stats.table import ScoreTable

FIRST_LOOKS = 6
"""Points that lie far apart, base and final checkpoint among them, before the likeliest ones."""
SAMPLER_EVERY = 4
"""Of the points that a budget allows besides base and final checkpoint, every fourth is the
sampler's."""
MAX_REPEATS = 40
"""Random proposals, after the sampler proposed a known point, before the space is exhausted."""


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
        study: Study,
        budget: Budget,
        begun: BegunSearch,
    ) -> None:
        self._evaluator = evaluator
        self._observations = observations
        self._space = space
        self._study = study
        self._budget = budget
        self._num_trials = begun.trials
        self._num_before = begun.num_before
        self._last_round = begun.round
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

    def round(self) -> list[Decision]:
        """What is measured before the next decision; empty if there is nothing left."""
        decisions: list[Decision] = []
        size = self._evaluator.section.round_size
        while len(decisions) < size or self._is_free(decisions[-1]):
            decision = self.next([each.evaluation for each in decisions])
            if decision is None or (len(decisions) >= size and not self._is_free(decision)):
                break
            decisions.append(decision)
        return decisions

    def _is_free(self, decision: Decision) -> bool:
        """Whether a decision depends on no measurement."""
        return decision.evaluation.origin == "anchor" and not (
            decision.evaluation.rung or self._budget.is_bounded
        )

    def next(self, running: Sequence[Evaluation]) -> Decision | None:
        """The next evaluation; None if there is none.

        Args:
            running: Evaluations decided before, in the same round.
        """
        table = self._observations.table()
        has_ends = self._observations.has_ends(table)
        if self._may_explore(table, running, has_ends=has_ends):
            kinds = [self._next_anchor, self._propose] if has_ends else [self._next_anchor]
            if self._is_turn_of_sampler(table, running):
                kinds.reverse()
            for kind in kinds:
                decision = kind(table, running)
                if decision is not None:
                    return decision
        return self._next_rung(table, running) if has_ends else None

    def _is_turn_of_sampler(self, table: ScoreTable, running: Sequence[Evaluation]) -> bool:
        """Whether the sampler would have less than its share with one more anchor."""
        new = _new(table, running)
        num_after = len(table.points) + len(new) - len(self._evaluator.ends) + 1
        num_sampled = [*table.origins, *(e.origin for e in new)].count("sampler")
        return self._budget.is_bounded and num_sampled < num_after // SAMPLER_EVERY

    def _next_anchor(self, table: ScoreTable, running: Sequence[Evaluation]) -> Decision | None:
        order: Sequence[Point] = self.anchors
        num_known = len(table.points) + len(_new(table, running))
        is_by_chance = self._budget.is_bounded and num_known >= FIRST_LOOKS
        if is_by_chance and self._observations.has_ends(table):
            left = [point for point in order if point not in table.points]
            order = likeliest_first(self._observations.by_role(table), left) if left else ()
        anchor = next_anchor(order, table.points, _points(running))
        return None if anchor is None else Decision(anchor)

    def _may_explore(
        self, table: ScoreTable, running: Sequence[Evaluation], *, has_ends: bool
    ) -> bool:
        """Whether the budget allows one more first rung without using the share of later rungs."""
        first_rung = self._evaluator.num_items(rung=0)
        spent, decided = self.spent(), self._num_items(running)
        if self._num_rungs == 1 or not has_ends:
            return self._budget.allows(spent, decided + first_rung)
        # What was recorded before this search, such as an objective it shares, cost it nothing.
        explored = min(first_rung * len(table.points), spent.items)
        explored += self._num_items(_new(table, running))
        later = spent.items + decided - explored
        due = (explored + first_rung) * (1 - EXPLORATION_SHARE) / EXPLORATION_SHARE
        return self._budget.allows(spent, decided + first_rung + int(max(due - later, 0)))

    def _num_items(self, evaluations: Sequence[Evaluation]) -> int:
        """Items that evaluations are still to be measured on."""
        return sum(
            self._evaluator.missing_items(e.point, "selection", e.rung) for e in evaluations
        )

    def _propose(self, table: ScoreTable, running: Sequence[Evaluation]) -> Decision | None:
        """The sampler's next point; a random one if it proposes a known point."""
        new = _new(table, running)
        slot = [*table.origins, *(e.origin for e in new)].count("sampler")
        known = {*table.points, *_points(running)}
        if slot >= self._num_trials or len(known) == self._num_known_when_exhausted:
            return None
        noted = {str(d.evaluation.point): d.notes for d in self._last_round}
        history = self._observations.history(table, {**noted, **self._study.notes()})
        parameters_of_new = [self._space.parameters_of(e.point) for e in new]
        running_parameters = [parameters for parameters in parameters_of_new if parameters]
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
                return Decision(Evaluation(point, 0, "sampler"), notes)
        self._num_known_when_exhausted = len(known)
        return None

    def _next_rung(self, table: ScoreTable, running: Sequence[Evaluation]) -> Decision | None:
        spent, decided = self.spent(), self._num_items(running)
        is_affordable = [
            self._budget.allows(spent, decided + self._evaluator.num_items(rung=rung))
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
            _points(running),
            # Bonferroni: the level is shared by the comparisons after each rung but the last.
            level=1 - (1 - self._evaluator.section.racing.level) / max(self._num_rungs - 1, 1),
            ends=self._evaluator.ends,
        )
        return None if evaluation is None else Decision(evaluation)


def _points(evaluations: Sequence[Evaluation]) -> list[Point]:
    return [evaluation.point for evaluation in evaluations]


def _new(table: ScoreTable, running: Sequence[Evaluation]) -> list[Evaluation]:
    """Evaluations under way of points that the table lacks."""
    return [evaluation for evaluation in running if evaluation.point not in table.points]
