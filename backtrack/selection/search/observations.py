"""Measured points as trials: with scores of both roles and constraint violations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backtrack.records import ROLES
from backtrack.records.selection import Constraints
from backtrack.selection.search.racing import NUM_RESAMPLES
from backtrack.selection.search.sampler import ObservedPoint
from backtrack.selection.stats.scores import RoleScores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.point import Point
    from backtrack.selection.measure.evaluator import Evaluator
    from backtrack.selection.search.space import Space
    from backtrack.selection.stats.bounds import Bound
    from backtrack.selection.stats.table import ScoreTable


@dataclass(frozen=True)
class NotedPoint:
    """What the study notes of a point.

    Attributes:
        attributes: User attributes.
        observed: Its scores; None as long as they may change.
        is_whole: Whether it has all items.
    """

    attributes: Mapping[str, object]
    observed: ObservedPoint | None = None
    is_whole: bool = False


class Observations:
    """The measurements of the selection items, as tables, role scores and observed points."""

    def __init__(self, evaluator: Evaluator, space: Space) -> None:
        self._evaluator = evaluator
        self._space = space
        self._num_tabulated = -1
        self._table: ScoreTable | None = None
        self._by_role: RoleScores | None = None

    def table(self) -> ScoreTable:
        """Scores of all points measured so far; the same object until more is recorded."""
        num_recorded = len(self._evaluator.recorded)
        if self._table is None or self._num_tabulated != num_recorded:
            self._table = self._evaluator.table(self._evaluator.setting("selection"))
            self._num_tabulated = num_recorded
        return self._table

    def by_role(self, table: ScoreTable) -> RoleScores:
        """Scores of a table by role; base and final checkpoint must be in it."""
        if self._by_role is None or self._by_role.table is not table:
            self._by_role = RoleScores(table, self._evaluator.section.seed, NUM_RESAMPLES)
        return self._by_role

    def has_ends(self, table: ScoreTable) -> bool:
        """Whether base and final checkpoint are measured, which all scores are related to."""
        return table.knows(self._evaluator.ends)

    def history(
        self, table: ScoreTable, notes: Mapping[str, Mapping[str, object]]
    ) -> list[ObservedPoint]:
        """All points inside the search space, in the order of measuring; the base several times.

        Args:
            table: The scores; base and final checkpoint must be in it.
            notes: What the sampler stored with its proposals, by the point's name.
        """
        by_role = self.by_role(table)
        bounds = self._bounds(by_role)
        history: list[ObservedPoint] = []
        for point in table.points:
            observed = self._observed(point, by_role, bounds)
            observed = replace(observed, notes=notes.get(str(point), {}))
            if point.is_base:
                everywhere = self._space.parameters_of_base()
                history += [replace(observed, parameters=parameters) for parameters in everywhere]
            elif observed.parameters:
                history.append(observed)
        return history

    def for_study(self, point: Point, *, is_over: bool) -> NotedPoint:
        """What the study notes of a point.

        Args:
            point: The point.
            is_over: Whether it gets no more items, so that estimates are its values.
        """
        table = self.table()
        if point.canonical not in table.points:
            return NotedPoint({})
        column = table.column(point)
        share = float(table.shares[column])
        attributes: dict[str, object] = {
            "share of items": round(share, 4),
            **{name: float(means[column]) for name, means in table.means.items()},
        }
        if not self.has_ends(table) or not (is_over or share == 1):
            return NotedPoint(attributes)
        by_role = self.by_role(table)
        observed = self._observed(point, by_role, self._bounds(by_role))
        by_name = dict(zip(ROLES, observed.values, strict=True))
        return NotedPoint(attributes | by_name, observed, is_whole=share == 1)

    def _bounds(self, by_role: RoleScores) -> tuple[Bound, ...]:
        base, final = (by_role.table.column(end) for end in self._evaluator.ends)
        return by_role.bounds(base, final, self._constraints)

    def _observed(
        self, point: Point, by_role: RoleScores, bounds: Sequence[Bound]
    ) -> ObservedPoint:
        column = by_role.table.column(point)
        scores = [float(by_role.role(role)[column]) for role in ROLES]
        constraints = {
            bound.name: bound.lowest - float(bound.values[column] - bound.margins[column])
            for bound in bounds
        }
        return ObservedPoint(self._space.parameters_of(point) or {}, scores, constraints)

    @property
    def _constraints(self) -> Constraints:
        recipe = self._evaluator.recipe
        return recipe.select if recipe else Constraints()
