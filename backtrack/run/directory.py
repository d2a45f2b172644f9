"""A run's directory: its files, and reading and writing them.

    runs/NAME/
      manifest.json  recipe.yaml  recipe.resolved.json  recipe.choosing.json  initial/
      trajectory/step-00000050/  trajectory/index.jsonl  trainer/  watch.jsonl
      settings.jsonl  measurements.jsonl  baselines.jsonl  shared_items.json
      search.json  study.db
      selection.json  sweep.json  diagnosis.jsonl  diagnosis.json
      report.html  figures/  export/

Promised: what was whole when a process was killed is read back whole. A missing checkpoint folder
raises an error that names the step; it is never skipped. One thread may write checkpoints through
a `Run` while others read its index.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from backtrack.errors import PointError, RunError
from backtrack.point import Point
from backtrack.recipe import ChoosingRecipe, Recipe
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
from backtrack.run.trust import allow, code_of_base, code_of_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backtrack.records import BaseModelReference

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
INDEX = "index.jsonl"
SEARCH_LOCK = ".search.lock"
"""Lock file that running searches hold."""
INITIAL = "initial"
"""Folder of the untrained adapter, saved if its initialization rewrote the base."""
RESOLVED = "recipe.resolved.json"
CHOOSING = "recipe.choosing.json"
"""Recipe of measuring and choosing, where it is not that of training, which is never changed."""

_GIVE_AGAIN = "Restore it from a copy, or delete it and give the recipe with --recipe FILE."
_CHOOSE_AGAIN = "Choose again: `backtrack select`."


class Run:
    """One training run's directory.

    Attributes:
        path: The directory.
        manifest: What the run is.
        recipe: How it was trained; None if it was adopted.
    """

    def __init__(self, path: Path, manifest: Manifest, recipe: Recipe | None) -> None:
        self.path = path
        self.manifest = manifest
        self.recipe = recipe
        self._index: Mapping[int, CheckpointEntry] | None = None
        """The last entry of each step; replaced, never changed, since other threads read it."""
        self._index_lock = threading.RLock()
        self._choosing: ChoosingRecipe | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        manifest: Manifest,
        recipe: Recipe | None = None,
        recipe_text: str | None = None,
    ) -> Self:
        """Create a run directory with its manifest and, if given, its recipe.

        Args:
            path: The directory; it must be new or empty.
            manifest: What the run is.
            recipe: How it was trained.
            recipe_text: The recipe as the user wrote it.

        Raises:
            RunError: The directory already holds a run or other files.
        """
        path = Path(path)
        if (path / MANIFEST).exists():
            raise RunError(
                f"{path} already holds a run. Choose another name, or continue it with --resume."
            )
        if path.is_dir() and any(path.iterdir()):
            raise RunError(f"{path} is not empty and is not a run. Choose another name.")
        (path / "trajectory").mkdir(parents=True, exist_ok=True)
        if recipe_text is not None:
            write_atomically(path / "recipe.yaml", recipe_text)
        if recipe is not None:
            write_atomically(path / RESOLVED, recipe.model_dump_json(indent=2) + "\n")
        write_atomically(path / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        allow(manifest, (*code_of_base(manifest), *code_of_recipe(recipe)))
        return cls(path, manifest, recipe)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a run: read its manifest and recipe.

        Raises:
            RunError: The folder is not a run, or its files are damaged.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise RunError(
                f"{path} is not a run: it has no {MANIFEST}. Adopt it with `backtrack adopt "
                f"{path}`."
            )
        remedy = "Restore it from a copy, or adopt the run again."
        manifest = read_record(path / MANIFEST, Manifest, remedy)
        logger.info("opened %s: %s of %s", path, manifest.method.kind, manifest.base.model)
        return cls(path, manifest, _read_recipe(path / RESOLVED))

    @property
    def choosing(self) -> ChoosingRecipe | None:
        """What the run is measured and chosen by; None if nothing says so.

        The recipe that `choose_by` was given, else the one saved last, else that of training.

        Raises:
            RunError: The saved one is damaged.
        """
        path = self.path / CHOOSING
        if self._choosing is None and path.exists():
            self._choosing = read_record(path, ChoosingRecipe, _GIVE_AGAIN)
        if self._choosing is None and self.recipe is not None:
            return ChoosingRecipe(recipe=self.recipe)
        return self._choosing

    def choose_by(self, choosing: ChoosingRecipe) -> None:
        """Measure and choose by another recipe from now on; `save_choosing` writes it."""
        if choosing != self.choosing:
            self._choosing = choosing

    def save_choosing(self) -> None:
        """Write the recipe of choosing, unless it is that of training."""
        path = self.path / CHOOSING
        if self._choosing is not None:
            text = self._choosing.model_dump_json(indent=2) + "\n"
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                write_atomically(path, text)

    @property
    def code(self) -> tuple[str, ...]:
        """The code outside this package that measuring the run would run, in words."""
        recipe = self.choosing.recipe if self.choosing else None
        return (*code_of_base(self.manifest), *code_of_recipe(recipe))

    @property
    def base(self) -> BaseModelReference:
        """The model before training."""
        return self.manifest.base

    @property
    def trajectory(self) -> Path:
        return self.path / "trajectory"

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that have a complete checkpoint, ascending."""
        return tuple(entry.step for entry in self.entries())

    @property
    def final(self) -> Point:
        """The last checkpoint at full strength.

        Raises:
            RunError: The run has no checkpoint yet.
        """
        steps = self.steps
        if not steps:
            raise RunError(
                f"{self.path} has no complete checkpoint yet. Train first: `backtrack train`."
            )
        return Point(step=steps[-1], alpha=1.0)

    def entry(self, step: int) -> CheckpointEntry:
        """The index entry of a step.

        Raises:
            PointError: The run has no such step.
        """
        entry = self._read_index().get(step)
        if entry is None or entry.is_dropped:
            known = ", ".join(str(s) for s in self.steps) or "none"
            raise PointError(f"{self.path} has no checkpoint of step {step}. It has: {known}.")
        return entry

    def entries(self) -> tuple[CheckpointEntry, ...]:
        """The index entries of all checkpoints, by step."""
        index = self._read_index()
        return tuple(index[step] for step in sorted(index) if not index[step].is_dropped)

    def checkpoint_digest(self, point: Point) -> str:
        """What measurements of a point name its checkpoint by; empty at the base.

        Raises:
            PointError: The run has no such step.
        """
        return "" if point.is_base else self.entry(point.step).digest

    def replaced_since(self, selection: Selection) -> tuple[int, ...]:
        """Steps that a selection has scores of and whose checkpoints were replaced after it."""
        now = self.checkpoint_digests()
        then = selection.checkpoints
        return tuple(step for step, digest in then.items() if now.get(step, digest) != digest)

    def checkpoint_digests(self) -> dict[int, str]:
        """What measurements name each checkpoint by, by step."""
        return {entry.step: entry.digest for entry in self.entries()}

    def folder(self, step: int) -> Path:
        """The folder of a checkpoint's weights.

        Raises:
            PointError: The run has no such step.
            RunError: The folder is missing, or lies outside a run that was not adopted.
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
                f"the checkpoint of step {step} is missing: {folder} is not a folder. Restore it, "
                "or adopt the run again."
            )
        return folder

    def add_entry(self, entry: CheckpointEntry) -> None:
        """Append to the index; the last line of a step counts."""
        with self._index_lock:
            index = self._read_index()
            append_line(self.trajectory / INDEX, entry.model_dump_json(exclude_defaults=True))
            self._index = {**index, entry.step: entry}

    def drop_entry(self, step: int) -> None:
        """Mark a step as deleted in the index."""
        facts = {"folder": "", "num_bytes": 0, "sha256": {}, "reference": None}
        self.add_entry(self.entry(step).model_copy(update={**facts, "is_dropped": True}))

    def all_entries(self, *, up_to: int) -> list[CheckpointEntry]:
        """The entry of every step that was ever saved, deleted ones included, by step."""
        index = self._read_index()
        return [index[step] for step in sorted(index) if step <= up_to]

    def measurements(self) -> list[Measurement]:
        """All measurements, in the order they were taken."""
        return list(read_lines(self.path / "measurements.jsonl", Measurement))

    def record(self, measurement: Measurement) -> None:
        """Append a measurement; safe with several writers at once."""
        append_line(self.path / "measurements.jsonl", measurement.model_dump_json())

    def selection(self) -> Selection | None:
        """The latest selection, if there is one."""
        path = self.path / "selection.json"
        return read_record(path, Selection, _CHOOSE_AGAIN) if path.exists() else None

    @property
    def is_searched(self) -> bool:
        """Whether a search of this run is active on this machine."""
        lock = self.path / SEARCH_LOCK
        if not lock.exists():
            return False
        with hold_lock(lock) as is_free:
            return not is_free

    def write_selection(self, selection: Selection) -> Path:
        """Write `selection.json` atomically."""
        path = self.path / "selection.json"
        write_atomically(path, selection.model_dump_json(indent=2) + "\n")
        return path

    def sweep(self) -> Sweep | None:
        """The choices at other weights and bounds; None if the latest selection has no sweep."""
        path = self.path / "sweep.json"
        selection = self.selection()
        if selection is None or not path.exists():
            return None
        sweep = read_record(path, Sweep, _CHOOSE_AGAIN)
        return sweep if sweep.created == selection.created else None

    def write_sweep(self, sweep: Sweep | None) -> None:
        """Save the sweep that belongs to the selection; None deletes the old one."""
        path = self.path / "sweep.json"
        if sweep is None:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, sweep.model_dump_json() + "\n")

    def _read_index(self) -> Mapping[int, CheckpointEntry]:
        """The last entry of each step.

        A damaged line hides only its own step, which is recovered when training resumes.
        """
        with self._index_lock:
            if self._index is None:
                self._index = self._index_of_file()
            return self._index

    def _index_of_file(self) -> dict[int, CheckpointEntry]:
        path = self.trajectory / INDEX
        entries = read_lines(path, CheckpointEntry, skips_invalid=True)
        return {entry.step: entry for entry in entries}


def _read_recipe(path: Path) -> Recipe | None:
    return read_record(path, Recipe, _GIVE_AGAIN) if path.exists() else None
