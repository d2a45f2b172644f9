"""Which items an objective gives to choosing and to reporting, and the parts a point earns."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from backtrack.errors import ObjectiveError
from backtrack.run.directory import write_atomically
from backtrack.selection.stats.items import items_digest, nested_rungs, split_items

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.recipe import SearchSection
    from backtrack.records import Split

    ByName = dict[str, tuple[str, ...]]

ITEMS = "items.json"


class Items:
    """The items of a run's objectives, by objective's name.

    Attributes:
        selection: What the search sees, sorted.
        report: What is kept for the report, sorted.
    """

    def __init__(self, section: SearchSection, selection: ByName, report: ByName) -> None:
        self._section = section
        self.selection = selection
        self.report = report
        self._rungs: dict[Split, list[ByName]] = {}

    @classmethod
    def drawn(cls, section: SearchSection, objectives: Sequence[Objective]) -> Items:
        """Disjoint ones for each purpose.

        Raises:
            ObjectiveError: An objective has too few.
        """
        pairs = {o.info.name: _shared(section, o) for o in objectives}
        return cls(
            section,
            {name: selection for name, (selection, _) in pairs.items()},
            {name: report for name, (_, report) in pairs.items()},
        )

    def of(self, split: Split) -> ByName:
        """All of them."""
        return self.selection if split == "selection" else self.report

    def rungs(self, split: Split) -> list[ByName]:
        """In the parts a point earns them in; an objective may have fewer parts than others."""
        if split not in self._rungs:
            section = self._section
            shares = section.racing.shares if split == "selection" else ()
            by_name = {
                name: nested_rungs(ids, shares, section.seed, section.batch_size)
                for name, ids in self.of(split).items()
            }
            count = max(len(found) for found in by_name.values())
            self._rungs[split] = [
                {name: found[i] for name, found in by_name.items() if i < len(found)}
                for i in range(count)
            ]
        return self._rungs[split]


def _shared(
    section: SearchSection, objective: Objective
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    items = section.items
    try:
        return split_items(objective.item_ids, items.selection, items.report, section.seed)
    except ObjectiveError as error:
        raise ObjectiveError(f"objective {objective.info.name!r}: {error}") from error


def read_items(path: Path) -> ByName:
    """Sets of items by their names."""
    if not path.exists():
        return {}
    return {name: tuple(ids) for name, ids in json.loads(path.read_text("utf-8")).items()}


def keep_items(path: Path, item_ids: Mapping[str, tuple[str, ...]]) -> None:
    """Write down the sets that measurements name as the whole of theirs."""
    known = read_items(path)
    more = {items_digest(ids): ids for ids in item_ids.values()}
    if not more.keys() <= known.keys():
        write_atomically(path, json.dumps(known | more) + "\n")
