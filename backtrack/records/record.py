"""The base class of records, and types that they share."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterable

Role = Literal["target", "general"]
Direction = Literal["maximize", "minimize"]
Form = Literal["attached", "merged"]
CurveName = Literal["native", "line"]
Split = Literal["selection", "report"]
ROLES: tuple[Role, ...] = ("target", "general")


class Record(BaseModel):
    """Base of every record; abstract."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Interval(Record):
    """An estimate with a two-sided interval, see `backtrack.selection.stats.intervals`."""

    estimate: float
    low: float
    high: float


class Axis(Record):
    """Unit and direction of a role's scores."""

    unit: str
    direction: Direction


def now() -> str:
    """The current UTC time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def short_digest(*parts: object) -> str:
    """Hash of parts as JSON: the first 64 bits of sha256, in hexadecimal."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def installed_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Versions of those of the libraries that are installed, by name."""
    versions = {}
    for name in libraries:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
