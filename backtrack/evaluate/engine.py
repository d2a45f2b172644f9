"""Engines: what holds a run's model and answers objectives at its points.

A new engine is a subclass of `Engine` in a module of its own, with a `LanguageModel` that answers
in its way, and a section of the recipe that names it (`backtrack.recipe.engine`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from backtrack.errors import ObjectiveError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from backtrack.evaluate.language_model import LanguageModel
    from backtrack.point import Point
    from backtrack.recipe import PlacementSection
    from backtrack.records import BaseModelReference, BatchSize, CurveName, Form
    from backtrack.records.answers import Answer


class RowStrengths(Protocol):
    """Several strengths of one adapter in one batch, as `path` offers them for a plain LoRA."""

    @property
    def max_rows(self) -> int: ...

    def shared(self, here: Point, points: Sequence[Point]) -> tuple[Point, ...]: ...

    def by_row(self, points: Sequence[Point]) -> AbstractContextManager[None]: ...


class PlacedModel(Protocol):
    """A live model that is moved along a run's path: `backtrack.path.placement.Placement`."""

    model: Any
    tokenizer: Any
    form: Form
    curve: CurveName

    @property
    def point(self) -> Point: ...

    @property
    def row_strengths(self) -> RowStrengths | None: ...

    def place(self, point: Point) -> None: ...

    def save(self, folder: Path, *, is_untied: bool = False) -> None: ...

    def save_files(self, folder: Path) -> None: ...

    def distance(self, point: Point) -> float: ...


@dataclass(frozen=True)
class RunFacts:
    """What an engine is told of the run.

    Attributes:
        base: The run's base.
        final: The last checkpoint at full strength.
        folder: The run's directory, for logs.
        batch_size: `search.batch_size` of the recipe.
    """

    base: BaseModelReference
    final: Point
    folder: Path
    batch_size: BatchSize


class Engine(ABC):
    """Answers objectives at the points of one run.

    Attributes:
        placed: The live model that makes the weights; of an engine with weights of its own it is
            not always at `point`.
        language_model: Asked by objectives; it answers as the model at `point`.
        tokenizer: The run's tokenizer.
        form: How the weights are held: adapters, or merged weights.
        curve: The curve on which points lie.
    """

    placed: PlacedModel
    language_model: LanguageModel
    tokenizer: Any
    form: Form
    curve: CurveName

    @classmethod
    def placement_options(cls, section: PlacementSection, checkpoint: Path) -> dict[str, Any]:  # noqa: ARG003
        """Arguments of the placement that makes the engine's weights.

        Args:
            section: What the recipe asks for.
            checkpoint: Folder of the last checkpoint.

        Raises:
            UsageError: The engine cannot serve such a checkpoint as asked.
        """
        return section.model_dump()

    @abstractmethod
    def __init__(self, placed: PlacedModel, settings: Any, run: RunFacts) -> None:
        """Start with a placed model at the base.

        Args:
            placed: Makes the weights of each point.
            settings: The recipe's section of this engine.
            run: Facts of the run.

        Raises:
            EngineError: It does not start, or does not answer as the placed model does.
        """

    @property
    @abstractmethod
    def point(self) -> Point:
        """Where the model is now.

        Raises:
            PlacementError: The last `place` was interrupted while it wrote weights.
        """

    @abstractmethod
    def place(self, point: Point) -> None:
        """Move the model to `point`; if this raises, it is where it was, or at no point.

        Raises:
            PointError: The run has no such step, or the method cannot go there.
        """

    def expect(self, points: Sequence[Point]) -> None:  # noqa: B027  # an engine may ignore it
        """Say which points come next; only speed depends on it."""

    @abstractmethod
    def distance(self, point: Point) -> float:
        """L2 norm of the difference from the base; see `Placement.distance`."""

    def noting(self) -> AbstractContextManager[Mapping[str, Answer]]:
        """Collect what the model says to items inside the context, by item."""
        return self.language_model.noting()

    def asked(self, model: Any) -> LanguageModel:
        """A torch model that is no point of the run, to be asked like the engine's own.

        Raises:
            ObjectiveError: The engine answers at points only.
        """
        raise ObjectiveError(
            f"{type(model).__name__} is no point of the run, and this engine answers at points "
            "only. Measure it with `engine: transformers`."
        )

    def close(self) -> None:  # noqa: B027  # most engines hold nothing outside the process
        """End what the engine started."""
