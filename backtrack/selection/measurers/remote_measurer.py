"""What runs in an actor: a measurer of the run as this machine sees it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from backtrack.errors import BacktrackError
from backtrack.run.directory import Run
from backtrack.selection.measurers.measurer import Measurer
from backtrack.selection.measurers.run_copy import is_at, write_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backtrack.recipe import ChoosingRecipe
    from backtrack.selection.measurers.measurer import Facts

Value = TypeVar("Value")


class RemoteMeasurer:
    """A measurer of a run, in an actor.

    Errors raised on purpose are returned, so that they arrive as they are.
    """

    def __init__(self, path: str, digest: str, choosing: ChoosingRecipe | None) -> None:
        self._path, self._digest, self._choosing = Path(path), digest, choosing
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._measurer: Measurer | None = None

    def prepare(self, files: Mapping[str, Any] | None) -> Facts | BacktrackError | None:
        """Open the run and load the model; None if the run's files must be sent first.

        Args:
            files: References to the contents of the run's files; None if none were sent.
        """
        if files is None and not is_at(self._path, self._digest):
            return None
        try:
            run = Run.open(self._path) if files is None else self._received(files)
            if self._choosing is not None:
                run.choose_by(self._choosing)
            recipe = self._choosing.recipe if self._choosing else None
            self._measurer = Measurer(run, recipe)
            return self._measurer.facts()
        except BacktrackError as error:
            return error

    def apply(self, method: Callable[..., Value], *args: Any) -> Value | BacktrackError:
        """The result of a method of the measurer."""
        assert self._measurer is not None
        try:
            return method(self._measurer, *args)
        except BacktrackError as error:
            return error

    def _received(self, files: Mapping[str, Any]) -> Run:
        import ray

        self._folder = tempfile.TemporaryDirectory(prefix="backtrack-run-")
        contents = dict(zip(files, ray.get(list(files.values())), strict=True))
        return write_copy(Path(self._folder.name), contents)
