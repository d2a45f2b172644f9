"""Words and shapes that every record shares."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["target", "general"]
Direction = Literal["maximize", "minimize"]
Form = Literal["attached", "merged"]
CurveName = Literal["native", "line"]
Split = Literal["selection", "report"]
ROLES: tuple[Role, ...] = ("target", "general")


class Record(BaseModel):
    """Base of every record; abstract."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Record):
    """An estimate with its two-sided bootstrap interval."""

    estimate: float
    low: float
    high: float


class Axis(Record):
    """How a role's numbers read: unit and direction."""

    unit: str
    direction: Direction


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
