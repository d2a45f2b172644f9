"""What a search costs: how much is spent, what is left, and what it will come to. Pure."""

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
    """What a search will cost, said before it starts.

    Attributes:
        num_points: Points it will measure.
        least_items: Items scored if racing drops all it can.
        most_items: Items scored if it drops nothing, or as many as the budget allows.
        done_items: Of these, on record already.
        seconds: For `most_items`, at the pace on record; none where nothing is on record.
    """

    num_points: int
    least_items: int
    most_items: int
    done_items: int
    seconds: float | None


@dataclass(frozen=True)
class Cost:
    """What measurements have cost."""

    items: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def on(cls, measurements: Sequence[Measurement]) -> Cost:
        """The sum over measurements."""
        return cls(
            items=sum(len(m.item_ids) for m in measurements),
            tokens=sum(m.num_tokens or 0 for m in measurements),
            seconds=sum(m.seconds for m in measurements),
        )

    def for_items(self, num_items: int) -> Cost:
        """What as many items would cost at the same pace; nothing known is nothing."""
        share = num_items / self.items if self.items else 0.0
        return Cost(num_items, round(share * self.tokens), share * self.seconds)


class Budget:
    """What may still be spent.

    Attributes:
        bounds: As asked.
    """

    def __init__(self, bounds: BudgetSection, num_workers: int = 1) -> None:
        self.bounds = bounds
        self._num_workers = num_workers
        self._started = time.monotonic()

    @property
    def is_bounded(self) -> bool:
        return any(bound is not None for bound in self.bounds.model_dump().values())

    def allows(self, spent: Cost, num_items: int, share: float = 1.0) -> bool:
        """Whether as many items more stay within a share of the budget."""
        more = spent.for_items(num_items)
        minutes = (time.monotonic() - self._started + more.seconds) / 60
        costs = {
            "items": spent.items + num_items,
            "tokens": spent.tokens + more.tokens,
            "minutes": minutes,
        }
        return all(
            bound is None or costs[name] <= share * bound
            for name, bound in self.bounds.model_dump().items()
        )

    def most_items(self, asked: int, spent: Cost) -> int:
        """Items the search may come to: those asked for, or fewer where the budget ends before."""
        most = float(asked)
        if self.bounds.items is not None:
            most = min(most, self.bounds.items)
        if self.bounds.tokens is not None and spent.tokens:
            most = min(most, self.bounds.tokens * spent.items / spent.tokens)
        if self.bounds.minutes is not None and spent.seconds:
            left = 60 * self.bounds.minutes - (time.monotonic() - self._started)
            pace = spent.items / spent.seconds * self._num_workers
            most = min(most, spent.items + max(left, 0) * pace)
        return max(int(most), min(spent.items, asked))

    def require(self, num_items: int) -> None:
        """Refuse a budget that does not reach for both ends of the path.

        Raises:
            UsageError: With what is needed.
        """
        if self.bounds.items is not None and self.bounds.items < num_items:
            raise UsageError(
                f"a budget of {self.bounds.items:,} items does not reach: base and final "
                f"checkpoint alone take {num_items:,}. Raise it, or lower "
                "`search.items.selection` in the recipe."
            )
