"""Every error the package raises on purpose.

A user's mistake and a broken file both end here; anything else that escapes is a defect of ours.

    BacktrackError
    ├── UsageError            what was asked cannot be done as asked             exit code 2
    │   ├── RecipeError       a recipe has faults; all of them are listed
    │   └── PointError        no such step, alpha or profile
    └── FailureError          what was asked went wrong                          exit code 1
        ├── RunError          a run's directory is missing, foreign or damaged
        ├── CheckpointError   a checkpoint's files are truncated, foreign or not finite
        ├── PlacementError    weights do not fit the model, or an end is not exact
        ├── EngineError       an engine does not start, dies, or answers otherwise than the model
        ├── ObjectiveError    an objective cannot be measured
        ├── SelectionError    no measured point serves what was asked
        └── ExportError       what was written does not give the placed model back

Each message says what, where and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class BacktrackError(Exception):
    """Base of every error raised on purpose; abstract."""

    exit_code = 1


class UsageError(BacktrackError):
    """What was asked cannot be done as asked."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has faults.

    Attributes:
        faults: One sentence a fault, in the order of the file.
    """

    def __init__(self, where: str, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        count = f"{len(faults)} mistake{'s' if len(faults) != 1 else ''}"
        super().__init__("\n".join([f"{where} has {count}:", *(f"  - {f}" for f in faults)]))


class PointError(UsageError):
    """No such step, alpha or profile."""


class FailureError(BacktrackError):
    """What was asked went wrong."""


class RunError(FailureError):
    """A run's directory is missing, foreign or damaged."""


class CheckpointError(FailureError):
    """A checkpoint's files are truncated, foreign or not finite."""


class PlacementError(FailureError):
    """Weights do not fit the model, or an end of the path is not exact."""


class ObjectiveError(FailureError):
    """An objective cannot be measured."""


class SelectionError(FailureError):
    """No measured point serves what was asked."""


class ExportError(FailureError):
    """What was written does not give the placed model back."""


class EngineError(FailureError):
    """An engine does not start, dies, or does not answer as the placed model does."""
