"""The record of the search that was begun last on a run."""

from __future__ import annotations

from pydantic import Field

from backtrack.records.record import Record


class BegunSearch(Record):
    """The search that was begun last: `search.json`.

    Attributes:
        key: Digest of what its points have in common: setting, checkpoints and search space.
        asked: Digest of the trials and the budget that the recipe asked for when it was begun.
        trials: Points that the sampler adds.
        budget: Limits of its cost by kind, those that were given.
        num_before: Number of measurements recorded before it; they cost it nothing.
        is_finished: Whether it measured all it was to measure, or spent its budget.
        created: When it was begun, ISO 8601 in UTC.
    """

    key: str
    asked: str
    trials: int
    budget: dict[str, float] = Field(default_factory=dict)
    num_before: int
    is_finished: bool = False
    created: str
