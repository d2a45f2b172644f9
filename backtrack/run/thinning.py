"""Thin a trajectory evenly to keep it within a budget.

The checkpoint whose neighbours are closest together is deleted first; the first and the last stay.
Promised: with a budget in checkpoints, the saved steps depend only on the steps offered, so a run
that was killed and resumed keeps the same steps as one that was never interrupted.
Not promised: the same for a budget in bytes, since the sizes of deleted checkpoints are not known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from backtrack.run.coded_chain import KEY_EVERY, drop_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backtrack.records import CheckpointEntry
    from backtrack.run.directory import Run

Spacing = Literal["steps", "log", "distance"]
MIN_CHECKPOINTS = 2


@dataclass(frozen=True)
class TrajectoryBudget:
    """How large a trajectory may become.

    Attributes:
        max_bytes: Largest total size of the weight files; None for no limit.
        max_checkpoints: Largest number of checkpoints; None for no limit.
        spacing: Measure by which the checkpoints are kept evenly spaced.
    """

    max_bytes: int | None = None
    max_checkpoints: int | None = None
    spacing: Spacing = "steps"

    def position(self, entry: CheckpointEntry) -> float:
        """The position of a checkpoint in the measure of `spacing`."""
        if self.spacing == "distance" and entry.distance is not None:
            return entry.distance
        return math.log(entry.step) if self.spacing == "log" else float(entry.step)


class Thinner:
    """Deletes checkpoints of a run to meet its budget."""

    def __init__(self, run: Run, budget: TrajectoryBudget, *, key_every: int = KEY_EVERY) -> None:
        self._run = run
        self._budget = budget
        self._key_every = key_every
        self._kept: list[tuple[float, int]] = []
        self._is_begun = False

    def thin(self, step: int) -> tuple[int, ...]:
        """Meet the budget after a step was written; return the deleted steps.

        Later steps, left by a killed attempt, are neither counted nor deleted.
        """
        return (*self._by_number(step), *self._by_size(step))

    def _by_number(self, step: int) -> list[int]:
        most = self._budget.max_checkpoints
        if most is None:
            return []
        entries = [self._run.entry(step)] if self._is_begun else self._run.all_entries(up_to=step)
        self._is_begun = True
        self._kept = survivors(
            ((self._budget.position(entry), entry.step) for entry in entries), most, self._kept
        )
        kept = {s for _, s in self._kept}
        return self._drop(s for s in self._run.steps if s < step and s not in kept)

    def _by_size(self, step: int) -> list[int]:
        dropped: list[int] = []
        while self._budget.max_bytes is not None:
            entries = [entry for entry in self._run.entries() if entry.step <= step]
            size = sum(entry.num_bytes for entry in entries)
            if len(entries) <= MIN_CHECKPOINTS or size <= self._budget.max_bytes:
                break
            items = [(self._budget.position(entry), entry.step) for entry in entries]
            dropped += self._drop([items[_most_crowded(items)][1]])
        return dropped

    def _drop(self, steps: Iterable[int]) -> list[int]:
        dropped = list(steps)
        for step in dropped:
            drop_checkpoint(self._run, step, key_every=self._key_every)
        return dropped


def survivors(
    offered: Iterable[tuple[float, int]], most: int, kept: Iterable[tuple[float, int]] = ()
) -> list[tuple[float, int]]:
    """The checkpoints left when they are offered one by one and at most `most` are saved.

    Args:
        offered: Position and step of each checkpoint, in order.
        most: Largest number saved at any time, at least two.
        kept: Position and step of those saved before.
    """
    left = list(kept)
    for item in offered:
        left = [other for other in left if other[1] != item[1]]
        left.append(item)
        if len(left) > max(most, MIN_CHECKPOINTS):
            del left[_most_crowded(left)]
    return left


def _most_crowded(items: list[tuple[float, int]]) -> int:
    """The index of the inner item whose neighbours are closest together, the first if tied."""
    return min((items[i + 1][0] - items[i - 1][0], i) for i in range(1, len(items) - 1))[1]
