"""Records of a gate: its bounds, what was shown of each, and the outcome."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backtrack.records.record import Interval, Record

Outcome = Literal["passes", "fails", "undecided"]


class GateBound(Record):
    """A bound on the candidate's gain over the incumbent.

    Attributes:
        kind: `max_drop`: it may lose so much; `min_gain`: it must gain so much.
        name: An objective, or a role.
        is_role: Whether `name` is a role: the weighted mean of its objectives, in points.
        number: How much: percent of a fraction, points of a role, else the objective's unit.
    """

    kind: Literal["max_drop", "min_gain"]
    name: str
    is_role: bool = False
    number: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    @property
    def least_gain(self) -> float:
        """The lowest gain of the candidate that keeps the bound; more is better."""
        return -self.number if self.kind == "max_drop" else self.number

    def __str__(self) -> str:
        what = "drop" if self.kind == "max_drop" else "gain"
        at = "at most" if self.kind == "max_drop" else "at least"
        return f"{self.name}: {what} {at} {self.number:g}"


class BoundResult(Record):
    """What the items show of one bound.

    Attributes:
        bound: The bound.
        outcome: `passes` if it is shown to be kept, `fails` if shown to be broken.
        unit: Unit of the numbers below: `%`, `points`, or the objective's own.
        candidate: Mean score of the candidate.
        incumbent: Mean score of the incumbent.
        gain: Candidate minus incumbent, more is better whatever the objective's direction. Each
            end of the interval holds with the gate's confidence, shared among bounds and looks.
        num_items: Items compared.
        items_to_decide: Items that would decide an undecided bound with a power of 80% if the gain
            is what was estimated; None if it is decided, or lies on the bound.
    """

    bound: GateBound
    outcome: Outcome
    unit: str
    candidate: float
    incumbent: float
    gain: Interval
    num_items: int
    items_to_decide: int | None = None


class GateResult(Record):
    """The answer of a gate.

    Attributes:
        candidate: What may replace the incumbent, as it was named.
        incumbent: What is in use.
        outcome: `fails` if a bound fails, `passes` if all pass, else `undecided`.
        confidence: Of all passing claims together, and of all failing ones.
        bounds: The bounds, in the order given.
        items_compared: Different items whose scores were compared.
        items_available: Items that there are, over the objectives that are bounded.
        num_looks: Number of looks at the bounds.
        notes: What a reader should know.
    """

    candidate: str
    incumbent: str
    outcome: Outcome
    confidence: float
    bounds: tuple[BoundResult, ...]
    items_compared: int
    items_available: int
    num_looks: int
    notes: tuple[str, ...] = ()
