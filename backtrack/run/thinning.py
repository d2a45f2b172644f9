"""Keep a trajectory within a budget, evenly.

The checkpoint whose neighbours lie closest together goes first; the first and the last stay.
Promised: counted in checkpoints, what is kept depends on the steps offered and nothing else, so a
run that was killed and resumed keeps the same steps as one that never stopped.
Not promised: the same where the budget is in bytes, for the size of what went before is not known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from backtrack.run.coded_chain import KEY_EVERY, give_up

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backtrack.records import CheckpointEntry
    from backtrack.run.directory import Run

Spacing = Literal["steps", "log", "distance"]
MIN_CHECKPOINTS = 2


@dataclass(frozen=True)
class TrajectoryBudget:
    """What a trajectory may take.

    Attributes:
        max_bytes: Of all weight files together.
        max_checkpoints: How many; the first and the last are always kept.
        axis: Along what the checkpoints are kept even.
    """

    max_bytes: int | None = None
    max_checkpoints: int | None = None
    axis: Spacing = "steps"

    def place(self, entry: CheckpointEntry) -> float:
        """Where a checkpoint lies on the axis."""
        if self.axis == "distance" and entry.distance is not None:
            return entry.distance
        return math.log(entry.step) if self.axis == "log" else float(entry.step)


class Thinner:
    """Gives up checkpoints of a run as its budget fills."""

    def __init__(self, run: Run, budget: TrajectoryBudget, *, key_every: int = KEY_EVERY) -> None:
        self._run = run
        self._budget = budget
        self._key_every = key_every
        self._kept: list[tuple[float, int]] = []
        self._is_begun = False

    def thin(self, step: int) -> tuple[int, ...]:
        """Meet the budget after a step was written; the steps that went.

        Steps past it, left by an attempt that was killed, are not counted and not touched.
        """
        gone = [*self._by_number(step), *self._by_size(step)]
        return tuple(gone)

    def _by_number(self, step: int) -> list[int]:
        most = self._budget.max_checkpoints
        if most is None:
            return []
        offered = [self._run.entry(step)] if self._is_begun else self._run.offered(up_to=step)
        self._is_begun = True
        self._kept = survivors(
            ((self._budget.place(entry), entry.step) for entry in offered), most, self._kept
        )
        kept = {s for _, s in self._kept}
        return self._give_up(s for s in self._run.steps if s < step and s not in kept)

    def _by_size(self, step: int) -> list[int]:
        gone: list[int] = []
        while self._budget.max_bytes is not None:
            entries = [entry for entry in self._run.entries() if entry.step <= step]
            size = sum(entry.num_bytes for entry in entries)
            if len(entries) <= MIN_CHECKPOINTS or size <= self._budget.max_bytes:
                break
            places = [(self._budget.place(entry), entry.step) for entry in entries]
            gone += self._give_up([places[_most_crowded(places)][1]])
        return gone

    def _give_up(self, steps: Iterable[int]) -> list[int]:
        gone = list(steps)
        for step in gone:
            give_up(self._run, step, key_every=self._key_every)
        return gone


def survivors(
    offered: Iterable[tuple[float, int]], most: int, kept: Iterable[tuple[float, int]] = ()
) -> list[tuple[float, int]]:
    """What is left of checkpoints offered one after the other when `most` are kept at any time.

    Args:
        offered: Place and step of each, in order.
        most: How many are kept, two at least.
        kept: What was kept before them.
    """
    left = list(kept)
    for item in offered:
        left = [other for other in left if other[1] != item[1]]
        left.append(item)
        if len(left) > max(most, MIN_CHECKPOINTS):
            del left[_most_crowded(left)]
    return left


def _most_crowded(places: list[tuple[float, int]]) -> int:
    """The index of the inner item whose neighbours lie closest together, the first of equals."""
    return min((places[i + 1][0] - places[i - 1][0], i) for i in range(1, len(places) - 1))[1]
