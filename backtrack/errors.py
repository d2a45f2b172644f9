"""Every error the package raises on purpose.

Wrong use and broken files raise one of these; any other exception that escapes is a bug.

    BacktrackError
    ├── UsageError            the request is invalid                             exit code 2
    │   ├── RecipeError       a recipe has mistakes; all of them are listed
    │   └── PointError        there is no such step, alpha or profile
    └── FailureError          a valid request failed                             exit code 1
        ├── RunError          a run's directory is missing, foreign or damaged
        ├── CheckpointError   a checkpoint's files are truncated, foreign or not finite
        ├── PlacementError    weights do not fit the model, or an end of the path is not exact
        ├── EngineError       an engine does not start, dies, or differs from the placed model
        ├── ObjectiveError    an objective cannot be measured
        ├── SelectionError    no measured point satisfies the request
        └── ExportError       an export does not load back as the placed model

Each message says what is wrong, where, and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class BacktrackError(Exception):
    """Base of every error raised on purpose; abstract."""

    exit_code = 1


class UsageError(BacktrackError):
    """The request is invalid."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has mistakes.

    Attributes:
        faults: One sentence for each mistake.
    """

    def __init__(self, where: str, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        count = f"{len(faults)} mistake{'s' if len(faults) != 1 else ''}"
        super().__init__("\n".join([f"{where} has {count}:", *(f"  - {f}" for f in faults)]))


class PointError(UsageError):
    """There is no such step, alpha or profile."""


class FailureError(BacktrackError):
    """A valid request failed."""


class RunError(FailureError):
    """A run's directory is missing, foreign or damaged."""


class CheckpointError(FailureError):
    """A checkpoint's files are truncated, foreign or not finite."""


class PlacementError(FailureError):
    """Weights do not fit the model, or an end of the path is not exact."""


class ObjectiveError(FailureError):
    """An objective cannot be measured."""


class SelectionError(FailureError):
    """No measured point satisfies the request."""


class ExportError(FailureError):
    """An export does not load back as the placed model."""


class EngineError(FailureError):
    """An engine does not start, dies, or differs from the placed model."""
