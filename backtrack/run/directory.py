"""A run's directory: what is in it and how it is read back.

    runs/NAME/
      manifest.json  recipe.yaml  recipe.resolved.json
      trajectory/step-00000050/  trajectory/index.jsonl
      study.db  measurements.jsonl  selection.json  sweep.json  report.html  figures/  export/

Promised: what was whole at a kill is read back whole. A last line cut short is passed over, and
the next one begins on a line of its own. A step whose folder is gone is named, not skipped.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import ValidationError

from backtrack.errors import PointError, RunError
from backtrack.point import Point
from backtrack.recipe import Recipe
from backtrack.records import CheckpointEntry, Manifest, Measurement
from backtrack.records.selection import Selection
from backtrack.records.sweep import Sweep
from backtrack.run.files import (
    append_line,
    hold_lock,
    read_lines,
    read_record,
    write_atomically,
)

if TYPE_CHECKING:
    from backtrack.records import BaseModelReference

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
INDEX = "index.jsonl"
SEARCH_LOCK = ".search.lock"
"""Held by the searches that go on."""
INITIAL = "initial"
"""The adapter as it started, where its initialization rewrote the base."""
MEASURED = "recipe.measured.json"
"""The recipe the objectives on record were built from, beside the run's own."""


class Run:
    """One training run's directory.

    Attributes:
        path: The directory.
        manifest: What the run is.
        recipe: What made it and what to measure; none where an adopted run was given none.
    """

    def __init__(self, path: Path, manifest: Manifest, recipe: Recipe | None) -> None:
        self.path = path
        self.manifest = manifest
        self.recipe = recipe
        self._index: dict[int, CheckpointEntry] | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        manifest: Manifest,
        recipe: Recipe | None = None,
        recipe_text: str | None = None,
    ) -> Self:
        """Make a new directory with its manifest and, if given, its recipe.

        Args:
            path: The directory; it must not exist, or be empty.
            manifest: What the run is.
            recipe: What made it and what to measure.
            recipe_text: The recipe in the user's own words.

        Raises:
            RunError: The directory holds a run already, or other people's files.
        """
        path = Path(path)
        if (path / MANIFEST).exists():
            raise RunError(
                f"{path} holds a run already. Take another name, or go on with --resume."
            )
        if path.is_dir() and any(path.iterdir()):
            raise RunError(f"{path} is not empty and holds no run. Take another name.")
        (path / "trajectory").mkdir(parents=True, exist_ok=True)
        run = cls(path, manifest, None)
        if recipe is not None:
            run.write_recipe(recipe, recipe_text)
        write_atomically(path / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read a run's manifest and recipe.

        Raises:
            RunError: There is no run, or its files are damaged.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise RunError(
                f"{path} holds no run: it has no {MANIFEST}. Adopt it with `backtrack adopt "
                f"{path}`."
            )
        manifest = read_record(path / MANIFEST, Manifest)
        logger.info("opened %s: %s of %s", path, manifest.method.kind, manifest.base.model)
        return cls(path, manifest, _read_recipe(path / "recipe.resolved.json"))

    def write_recipe(self, recipe: Recipe, text: str | None = None) -> None:
        """Keep a recipe: as resolved, and in the user's own words if given.

        Args:
            recipe: As resolved.
            text: As it was written.
        """
        if text is not None:
            write_atomically(self.path / "recipe.yaml", text)
        write_atomically(
            self.path / "recipe.resolved.json", recipe.model_dump_json(indent=2) + "\n"
        )
        self.recipe = recipe

    @property
    def base(self) -> BaseModelReference:
        """The model before training."""
        return self.manifest.base

    @property
    def trajectory(self) -> Path:
        return self.path / "trajectory"

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps with a whole checkpoint, ascending."""
        return tuple(sorted(s for s, e in self._read_index().items() if not e.is_dropped))

    @property
    def final(self) -> Point:
        """The last checkpoint at full strength.

        Raises:
            RunError: The run has no checkpoint yet.
        """
        if not self.steps:
            raise RunError(
                f"{self.path} has no whole checkpoint yet. Train first: `backtrack train`."
            )
        return Point(step=self.steps[-1], alpha=1.0)

    def entry(self, step: int) -> CheckpointEntry:
        """The index's line for a step.

        Raises:
            PointError: The run has no such step.
        """
        entry = self._read_index().get(step)
        if entry is None or entry.is_dropped:
            known = ", ".join(str(s) for s in self.steps) or "none"
            raise PointError(f"{self.path} has no checkpoint of step {step}. It has: {known}.")
        return entry

    def entries(self) -> tuple[CheckpointEntry, ...]:
        """The index, by step."""
        return tuple(self.entry(step) for step in self.steps)

    def folder(self, step: int) -> Path:
        """The folder of a checkpoint's weights.

        Raises:
            PointError: The run has no such step.
            RunError: The folder is gone, or lies outside the run without being adopted.
        """
        entry = self.entry(step)
        folder = Path(entry.folder)
        if not folder.is_absolute():
            folder = self.trajectory / folder
            if not folder.resolve().is_relative_to(self.trajectory.resolve()):
                raise RunError(
                    f"{self.trajectory / INDEX}: step {step} points outside the run: "
                    f"{entry.folder!r}."
                )
        elif self.manifest.source is None:
            raise RunError(
                f"{self.trajectory / INDEX}: step {step} points outside the run: {entry.folder!r}."
            )
        if not folder.is_dir():
            raise RunError(
                f"the checkpoint of step {step} is gone: {folder} is no folder. Put it back or "
                "adopt anew."
            )
        return folder

    def add_entry(self, entry: CheckpointEntry) -> None:
        """Append to the index; a later line of the same step wins."""
        index = self._read_index()
        append_line(self.trajectory / INDEX, entry.model_dump_json(exclude_defaults=True))
        index[entry.step] = entry

    def drop_entry(self, step: int) -> None:
        """Say in the index that a step was given up."""
        facts = {"folder": "", "num_bytes": 0, "sha256": {}, "reference": None}
        self.add_entry(self.entry(step).model_copy(update={**facts, "is_dropped": True}))

    def offered(self, *, up_to: int) -> list[CheckpointEntry]:
        """The lines of all steps that were ever kept, those given up among them, by step."""
        index = self._read_index()
        return [index[step] for step in sorted(index) if step <= up_to]

    def measurements(self) -> list[Measurement]:
        """Every measurement, in the order of measuring."""
        return list(read_lines(self.path / "measurements.jsonl", Measurement))

    def record(self, measurement: Measurement) -> None:
        """Append a measurement; safe with several writers."""
        append_line(self.path / "measurements.jsonl", measurement.model_dump_json())

    def selection(self) -> Selection | None:
        """The last selection, if one was made."""
        path = self.path / "selection.json"
        return read_record(path, Selection) if path.exists() else None

    @property
    def is_searched(self) -> bool:
        """Whether a search of it is going on, on this machine, at this moment."""
        lock = self.path / SEARCH_LOCK
        if not lock.exists():
            return False
        with hold_lock(lock) as is_free:
            return not is_free

    def measured_recipe(self) -> Recipe | None:
        """The recipe the measurements were last made by; the run's own where none is on record.

        Raises:
            RunError: It is damaged.
        """
        return _read_recipe(self.path / MEASURED) or self.recipe

    def write_selection(self, selection: Selection) -> Path:
        """Write `selection.json`, whole or not at all."""
        path = self.path / "selection.json"
        write_atomically(path, selection.model_dump_json(indent=2) + "\n")
        return path

    def sweep(self) -> Sweep | None:
        """The answers to other weights and bounds; none where the selection on record has none."""
        path = self.path / "sweep.json"
        selection = self.selection()
        if selection is None or not path.exists():
            return None
        found = read_record(path, Sweep)
        return found if found.created == selection.created else None

    def write_sweep(self, sweep: Sweep | None) -> None:
        """Keep the answers that belong to the selection, or keep none."""
        path = self.path / "sweep.json"
        if sweep is None:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, sweep.model_dump_json() + "\n")

    def _read_index(self) -> dict[int, CheckpointEntry]:
        """The last line of each step. A damaged line hides its own step and no other."""
        if self._index is not None:
            return self._index
        path = self.trajectory / INDEX
        found: dict[int, CheckpointEntry] = {}
        lines = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for number, line in enumerate(lines.split("\n"), 1):
            if not line.strip():
                continue
            try:
                entry = CheckpointEntry.model_validate_json(line)
            except ValidationError:
                logger.warning(
                    "%s, line %d is cut short or damaged and passed over; its checkpoint, if "
                    "whole, is taken up again when the training resumes", path, number,
                )  # fmt: skip
                continue
            found[entry.step] = entry
        self._index = found
        return found


def _read_recipe(path: Path) -> Recipe | None:
    if not path.exists():
        return None
    try:
        return Recipe.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} is no valid recipe. Give the recipe again with --recipe FILE."
        ) from error
