"""The record of the search that was begun last on a run, and of what it measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from backtrack.point import Point  # noqa: TC001  # pydantic reads it
from backtrack.records.record import Record


@dataclass(frozen=True)
class Evaluation:
    """One point and the rung of items it is measured on.

    Attributes:
        point: The point.
        rung: Index of the rung, from 0; None for all items.
        origin: What proposed the point: `anchor` or `sampler`, or as recorded.
    """

    point: Point
    rung: int | None
    origin: str


@dataclass(frozen=True)
class Decision:
    """What is measured next.

    Attributes:
        evaluation: The point and its rung.
        notes: System attributes the sampler stored with its proposal.
    """

    evaluation: Evaluation
    notes: dict[str, Any] = field(default_factory=dict)


class BegunSearch(Record):
    """The search that was begun last: `search.json`.

    Attributes:
        key: Digest of what its points have in common: setting, checkpoints and search space.
        asked: Digest of the trials and the budget that the recipe asked for when it was begun.
        trials: Points that the sampler adds.
        budget: Limits of its cost by kind, those that were given.
        num_before: Number of measurements recorded before it; they cost it nothing.
        round: Decisions that were made together and may not all be measured yet.
        is_finished: Whether it measured all it was to measure, or spent its budget.
        created: When it was begun, ISO 8601 in UTC.
    """

    key: str
    asked: str
    trials: int
    budget: dict[str, float] = Field(default_factory=dict)
    num_before: int
    round: tuple[Decision, ...] = ()
    is_finished: bool = False
    created: str
