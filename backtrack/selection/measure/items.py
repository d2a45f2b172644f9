"""Split each objective's items into selection and report items, and selection items into rungs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from backtrack.errors import ObjectiveError
from backtrack.selection.stats.items import NO_CLUSTERS, nested_order, nested_rungs, split_items

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.recipe import SearchSection
    from backtrack.records import Split
    from backtrack.selection.measurers.measurer import ObjectiveFacts

    ByName = dict[str, tuple[str, ...]]
    Built: TypeAlias = ObjectiveFacts | Objective

RUNG_UNIT = 16
"""Items that a rung is a multiple of where the batch size is left open."""


class Items:
    """Ids of the items of a run's objectives, by objective's name.

    Attributes:
        selection: Items of the search, sorted.
        report: Items of the report, sorted; the search never sees them.
    """

    def __init__(
        self,
        section: SearchSection,
        selection: ByName,
        report: ByName,
        clusters: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._section = section
        self.selection = selection
        self.report = report
        self._clusters = clusters or {}
        self._rungs: dict[Split, list[ByName]] = {}

    @property
    def clusters(self) -> dict[str, dict[str, str]]:
        """Cluster by item, of the objectives whose items share something."""
        found: dict[str, dict[str, str]] = {}
        for name, clusters in self._clusters.items():
            if clusters:
                drawn = (*self.selection[name], *self.report[name])
                found[name] = {i: clusters[i] for i in drawn if i in clusters}
        return found

    @classmethod
    def split(cls, section: SearchSection, objectives: Sequence[Built]) -> Items:
        """Draw disjoint items for selection and report.

        Raises:
            ObjectiveError: An objective has too few items.
        """
        pairs = {o.info.name: _split_objective(section, o) for o in objectives if not o.lent}
        pairs |= {o.info.name: _split_lent(section, o, pairs) for o in objectives if o.lent}
        return cls(
            section,
            {name: selection for name, (selection, _) in pairs.items()},
            {name: report for name, (_, report) in pairs.items()},
            {o.info.name: o.clusters for o in objectives},
        )

    def of(self, split: Split) -> ByName:
        """All items of a split."""
        return self.selection if split == "selection" else self.report

    def rungs(self, split: Split) -> list[ByName]:
        """The items of a split by rung; an objective may have fewer rungs than others."""
        if split not in self._rungs:
            section = self._section
            shares = section.racing.shares if split == "selection" else ()
            unit = RUNG_UNIT if section.batch_size == "auto" else section.batch_size
            by_name = {
                name: nested_rungs(
                    ids, shares, section.seed, unit, self._clusters.get(name, NO_CLUSTERS)
                )
                for name, ids in self.of(split).items()
            }
            count = max(len(rungs) for rungs in by_name.values())
            self._rungs[split] = [
                {name: rungs[i] for name, rungs in by_name.items() if i < len(rungs)}
                for i in range(count)
            ]
        return self._rungs[split]


def _split_lent(
    section: SearchSection,
    objective: Built,
    pairs: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split borrowed items as those who lend them are split, and as many of each stratum's."""

    def drawn(index: int, limit: int) -> tuple[str, ...]:
        of_split = {name: set(pair[index]) for name, pair in pairs.items()}
        ids = [i for i, (lender, item_id) in objective.lent.items() if item_id in of_split[lender]]
        return tuple(sorted(nested_order(ids, section.seed, objective.clusters)[:limit]))

    return drawn(0, section.items.selection), drawn(1, section.items.report)


def _split_objective(
    section: SearchSection, objective: Built
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    items, ids = section.items, objective.item_ids
    try:
        return split_items(ids, items.selection, items.report, section.seed, objective.clusters)
    except ObjectiveError as error:
        raise ObjectiveError(f"objective {objective.info.name!r}: {error}") from error
