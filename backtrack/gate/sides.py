"""A side of a gate: scores by item, recorded in files or measured when they are asked for.

A new kind of side is a subclass of `Side` that offers `ItemScores`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING

from typing_extensions import override

from backtrack.selection.stats.items import NO_CLUSTERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.records import ObjectiveInfo

NOTHING_ASKED: Mapping[str, Mapping[str, str]] = MappingProxyType({})
NO_TEXTS: Mapping[str, str] = MappingProxyType({})


class ItemScores(ABC):
    """One objective's items on one side, and their scores; abstract.

    Attributes:
        info: What the scores are; an empty fingerprint says that it is not known how they were
            made, apart from `asked` and `texts`.
        item_ids: The items it has, or would measure by itself.
        possible: All items that it can score.
        clusters: Cluster by item, of items that share something.
        asked: Digests of what each item asks, by item and kind of digest; empty if unknown.
        texts: What each item asks, as text, by item; empty if unknown.
        is_recorded: Whether scores are read rather than measured.
    """

    info: ObjectiveInfo
    item_ids: tuple[str, ...]
    possible: frozenset[str]
    clusters: Mapping[str, str] = NO_CLUSTERS
    asked: Mapping[str, Mapping[str, str]] = NOTHING_ASKED
    is_recorded: bool

    @property
    def texts(self) -> Mapping[str, str]:
        return NO_TEXTS

    def expect(self, item_ids: Sequence[str]) -> None:  # noqa: B027  # for what is measured alone
        """Announce the next call of `scores`, for what is measured along with others."""

    @abstractmethod
    def scores(self, item_ids: Sequence[str]) -> tuple[float, ...]:
        """One score per item, in the order of `item_ids`, in the unit of `info`."""


class RecordedScores(ItemScores):
    """Scores that are known."""

    is_recorded = True

    def __init__(
        self,
        info: ObjectiveInfo,
        by_item: Mapping[str, float],
        *,
        clusters: Mapping[str, str] = NO_CLUSTERS,
        asked: Mapping[str, Mapping[str, str]] = NOTHING_ASKED,
        texts: Mapping[str, str] = NO_TEXTS,
    ) -> None:
        """Take the scores of `info` by item; see the class for the rest."""
        self.info = info
        self.item_ids = tuple(sorted(by_item))
        self.possible = frozenset(by_item)
        self.clusters = clusters
        self.asked = asked
        self._by_item = by_item
        self._texts = texts

    @property
    @override
    def texts(self) -> Mapping[str, str]:
        return self._texts

    @override
    def scores(self, item_ids: Sequence[str]) -> tuple[float, ...]:
        return tuple(self._by_item[item_id] for item_id in item_ids)


class Side(ABC):
    """What is compared: a model's scores by objective; abstract.

    Attributes:
        name: As the user named it.
    """

    name: str

    @property
    @abstractmethod
    def objectives(self) -> Mapping[str, ItemScores]:
        """The objectives by name, of those that belong to a role's mean.

        Raises:
            UsageError: It is not known which scores are meant.
        """

    def find(self, name: str) -> ItemScores | None:
        """The objective of a name, or None; a side may know names that are in no role's mean."""
        return self.objectives.get(name)

    @property
    def known_names(self) -> tuple[str, ...]:
        """Names that `find` knows, for messages."""
        return tuple(self.objectives)


class RecordedSide(Side):
    """Scores that are known, by objective."""

    def __init__(self, name: str, objectives: Mapping[str, ItemScores]) -> None:
        self.name = name
        self._objectives = objectives

    @property
    @override
    def objectives(self) -> Mapping[str, ItemScores]:
        return self._objectives
