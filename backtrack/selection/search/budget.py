"""What a search has cost, may still cost and will cost in all. Pure."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backtrack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.recipe import BudgetSection
    from backtrack.records import Measurement


@dataclass(frozen=True)
class Plan:
    """What a search will still cost, as shown before it starts.

    Attributes:
        num_points: Points it compares.
        least_items: Items to score if racing drops every point but base and final checkpoint.
        most_items: Items to score if racing drops nothing, or as many as the budget allows.
        recorded_items: Items of these points that are recorded already.
        seconds: Time for `most_items` at the pace so far; None if it measured nothing yet.
    """

    num_points: int
    least_items: int
    most_items: int
    recorded_items: int
    seconds: float | None


@dataclass(frozen=True)
class Cost:
    """Items, tokens and wall time of measurements."""

    items: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, measurements: Sequence[Measurement]) -> Cost:
        """The sum over measurements."""
        return cls(
            items=sum(len(m.item_ids) for m in measurements),
            tokens=sum(m.num_tokens or 0 for m in measurements),
            seconds=sum(m.seconds for m in measurements),
        )

    def for_items(self, num_items: int) -> Cost:
        """The cost of so many items at the same pace; no tokens and seconds if none is known."""
        ratio = num_items / self.items if self.items else 0.0
        return Cost(num_items, round(ratio * self.tokens), ratio * self.seconds)


class Budget:
    """What a search may still cost; minutes count from when this object is made.

    Attributes:
        bounds: Limits given in the recipe or by the caller.
    """

    def __init__(self, bounds: BudgetSection, num_workers: int = 1) -> None:
        self.bounds = bounds
        self._num_workers = num_workers
        self._started = time.monotonic()

    @property
    def is_bounded(self) -> bool:
        return any(bound is not None for bound in self.bounds.model_dump().values())

    def allows(self, spent: Cost, num_items: int) -> bool:
        """Whether `num_items` more stay within the budget."""
        more = spent.for_items(num_items)
        minutes = (time.monotonic() - self._started + more.seconds) / 60
        costs = {
            "items": spent.items + num_items,
            "tokens": spent.tokens + more.tokens,
            "minutes": minutes,
        }
        return all(
            bound is None or costs[name] <= bound
            for name, bound in self.bounds.model_dump().items()
        )

    def most_items(self, planned: int, spent: Cost) -> int:
        """Items the search may score in all: `planned`, or fewer if the budget ends before."""
        most = float(planned)
        if self.bounds.items is not None:
            most = min(most, self.bounds.items)
        if self.bounds.tokens is not None and spent.tokens:
            most = min(most, self.bounds.tokens * spent.items / spent.tokens)
        if self.bounds.minutes is not None and spent.seconds:
            left = 60 * self.bounds.minutes - (time.monotonic() - self._started)
            pace = spent.items / spent.seconds * self._num_workers
            most = min(most, spent.items + max(left, 0) * pace)
        return max(int(most), min(spent.items, planned))

    def require(self, num_items: int) -> None:
        """Refuse a budget of fewer than `num_items`, the cost of both ends of the path.

        Raises:
            UsageError: Says how many are needed.
        """
        if self.bounds.items is not None and self.bounds.items < num_items:
            raise UsageError(
                f"a budget of {self.bounds.items:,} items is too small: base and final checkpoint "
                f"alone take {num_items:,}. Raise it, or lower `search.items.selection` in the "
                "recipe."
            )
