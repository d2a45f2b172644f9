"""A run's directory: its files, and reading and writing them.

    runs/NAME/
      manifest.json  recipe.yaml  recipe.resolved.json  recipe.choosing.json  model/
      initial/
      trajectory/step-00000050/  trajectory/index.jsonl  trainer/  watch.jsonl
      settings.jsonl  measurements.jsonl  baselines.jsonl  shared_items.json  answers/
      search.json  study.db
      selection.json  sweep.json  diagnosis.jsonl  diagnosis.json
      report.html  figures/  export/

Promised: what was whole when a process was killed is read back whole. A missing checkpoint folder
raises an error that names the step; it is never skipped. One thread may write checkpoints through
a `Run` while others read its index. A run can be moved: `backtrack.records.places` says how its
files name others.
"""

from __future__ import annotations

import logging
import threading
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from backtrack.errors import PointError, RunError
from backtrack.formatting import command
from backtrack.point import Point
from backtrack.recipe import ChoosingRecipe, Recipe
from backtrack.recipe.loading import with_paths
from backtrack.records import CheckpointEntry, Manifest, Measurement
from backtrack.records.places import Places
from backtrack.records.record import short_digest
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
    from collections.abc import Callable, Mapping

    import pandas as pd

    from backtrack.records import BaseModelReference

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
INDEX = "index.jsonl"
SEARCH_LOCK = ".search.lock"
"""Lock file that running searches hold."""
MODEL_FILES = "model"
"""Folder of the last checkpoint's own files besides weights; see `backtrack.run.model_files`."""
INITIAL = "initial"
"""Folder of the untrained adapter, saved if its initialization rewrote the base."""
RESOLVED = "recipe.resolved.json"
CHOOSING = "recipe.choosing.json"
"""Recipe of measuring and choosing, where it is not that of training, which is never changed."""

_GIVE_AGAIN = "Restore it from a copy, or delete it and give the recipe with --recipe FILE."


class Run:
    """One training run's directory.

    Attributes:
        path: The directory.
        manifest: What the run is.
        recipe: How it was trained; None if it was adopted.
    """

    def __init__(
        self, path: Path, manifest: Manifest, recipe: Recipe | None, home: Path | None = None
    ) -> None:
        """Take what was read; `open` and `create` do the reading and writing.

        Args:
            path: The directory.
            manifest: What the run is.
            recipe: How it was trained.
            home: Where the directory will be moved before it is opened; None if it stays.
        """
        self.path = path
        self.manifest = manifest
        self.recipe = recipe
        self._home = (home or path).resolve()
        self._index: Mapping[int, CheckpointEntry] | None = None
        """The last entry of each step; replaced, never changed, since other threads read it."""
        self._index_lock = threading.RLock()
        self._choosing: ChoosingRecipe | None = None
        self._keeps_choosing = True

    @classmethod
    def create(
        cls,
        path: str | Path,
        manifest: Manifest,
        recipe: Recipe | None = None,
        recipe_text: str | None = None,
        home: Path | None = None,
    ) -> Self:
        """Create a run directory with its manifest and, if given, its recipe.

        Args:
            path: The directory; it must be new or empty.
            manifest: What the run is.
            recipe: How it was trained.
            recipe_text: The recipe as the user wrote it.
            home: Where the directory will be moved before it is opened; None if it stays.

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
        run = cls(path, manifest, recipe, home)
        if recipe_text is not None:
            write_atomically(path / "recipe.yaml", recipe_text)
        if recipe is not None:
            write_atomically(
                path / RESOLVED, run._written(recipe).model_dump_json(indent=2) + "\n"
            )
        run.write_manifest(manifest)
        allow(manifest, (*code_of_base(manifest), *code_of_recipe(recipe)))
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a run: read its manifest and recipe.

        Raises:
            RunError: The folder is not a run, or its files are damaged.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise RunError(
                f"{path} is not a run: it has no {MANIFEST}. Adopt it with "
                f"{command('adopt', path)}."
            )
        remedy = "Restore it from a copy, or adopt the run again."
        run = cls(path, read_record(path / MANIFEST, Manifest, remedy), None)
        run.manifest = run._with_changed_paths(run.places.read)
        if (path / RESOLVED).exists():
            run.recipe = run._read(read_record(path / RESOLVED, Recipe, _GIVE_AGAIN))
        logger.info("opened %s: %s of %s", path, run.manifest.method.kind, run.base.model)
        return run

    @property
    def places(self) -> Places:
        """Where paths in the run's files lead from."""
        before = [Path(folder) for folder in reversed(self.manifest.folders)]
        return Places((self._home, *(folder for folder in before if folder != self._home)))

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace `manifest.json`.

        Args:
            manifest: The manifest; its paths are absolute.
        """
        home = str(self._home)
        folders = [folder for folder in manifest.folders if folder != home]
        self.manifest = manifest.model_copy(update={"folders": (*folders, home)})
        written = self._with_changed_paths(self.places.written)
        write_atomically(self.path / MANIFEST, written.model_dump_json(indent=2) + "\n")

    def keep_notes(self, notes: tuple[str, ...]) -> tuple[str, ...]:
        """Save what a reader of the run's scores should know, and return it."""
        if notes != self.manifest.notes:
            self.write_manifest(self.manifest.model_copy(update={"notes": notes}))
        return notes

    def _with_changed_paths(self, change: Callable[[str], str]) -> Manifest:
        manifest, base = self.manifest, self.manifest.base
        paths = {"source": manifest.source, "initial": manifest.initial}
        changed = {name: path and change(path) for name, path in paths.items()}
        named = base.model_copy(update={"model": change(base.model)})
        return manifest.model_copy(update={**changed, "base": named})

    def _written(self, recipe: Recipe) -> Recipe:
        """A recipe with paths as they are written into the run."""
        return _with_paths(recipe, self.places.written)

    def _read(self, recipe: Recipe) -> Recipe:
        """A recipe of the run's files, with paths and base as they are now."""
        base = {"model": self.base.model, "revision": self.base.revision}
        recipe = _with_paths(recipe, self.places.read)
        return recipe.model_copy(update={"base": recipe.base.model_copy(update=base)})

    @property
    def choosing(self) -> ChoosingRecipe | None:
        """What the run is measured and chosen by; None if nothing says so.

        The recipe that `choose_by` was given, else the one saved last, else that of training.

        Raises:
            RunError: The saved one is damaged.
        """
        path = self.path / CHOOSING
        if self._choosing is None and path.exists():
            saved = read_record(path, ChoosingRecipe, _GIVE_AGAIN)
            self._choosing = saved.model_copy(update={"recipe": self._read(saved.recipe)})
        if self._choosing is None and self.recipe is not None:
            return ChoosingRecipe(recipe=self.recipe)
        return self._choosing

    def choose_by(self, choosing: ChoosingRecipe) -> None:
        """Measure and choose by another recipe from now on; `save_choosing` writes it."""
        if choosing != self.choosing:
            self._choosing = choosing

    def choose_for_now(self) -> None:
        """Leave the run's own recipe of choosing as it is on disk, whatever is measured."""
        self._keeps_choosing = False

    def save_choosing(self) -> None:
        """Write the recipe of choosing, unless it is that of training."""
        path = self.path / CHOOSING
        if self._choosing is not None and self._keeps_choosing:
            written = {"recipe": self._written(self._choosing.recipe)}
            saved = self._choosing.model_copy(update=written)
            text = saved.model_dump_json(indent=2) + "\n"
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
        return self.manifest.base.model_copy(update={"run": str(self.path)})

    @property
    def model_digest(self) -> str:
        """Identity of the base and of the files in `model/`, for the settings of measurements."""
        folder = self.path / MODEL_FILES
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        digests = {name: sha256(content).hexdigest() for name, content in contents.items()}
        return short_digest(self.base.digest, digests)

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
                f"{self.path} has no complete checkpoint yet. Train first: "
                "`backtrack train RECIPE`."
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
        folder = self.trajectory / entry.folder
        is_inside = folder.resolve().is_relative_to(self.trajectory.resolve())
        if not is_inside and self.manifest.source is None:
            raise RunError(
                f"{self.trajectory / INDEX}: step {step} points outside the run: {entry.folder!r}."
            )
        if not folder.is_dir():
            again = command("adopt", "FOLDER", "--name", self.path.name)
            moved = f" If it has moved: {again}."
            raise RunError(
                f"the checkpoint of step {step} is missing: {folder} is not a folder. Restore it."
                f"{moved if self.manifest.source else ''}"
            )
        return folder

    def add_entry(self, entry: CheckpointEntry) -> None:
        """Append to the index; the last line of a step counts."""
        with self._index_lock:
            index = self._read_index()
            written = _moved(entry, self._trajectory_places.written)
            append_line(self.trajectory / INDEX, written.model_dump_json(exclude_defaults=True))
            self._index = {**index, entry.step: entry}

    def drop_entry(self, step: int) -> None:
        """Mark a step as deleted in the index."""
        facts = {"folder": "", "num_bytes": 0, "sha256": {}, "config": "", "reference": None}
        self.add_entry(self.entry(step).model_copy(update={**facts, "is_dropped": True}))

    def all_entries(self, *, up_to: int) -> list[CheckpointEntry]:
        """The entry of every step that was ever saved, deleted ones included, by step."""
        index = self._read_index()
        return [index[step] for step in sorted(index) if step <= up_to]

    def measurements(self) -> list[Measurement]:
        """All measurements, in the order they were taken."""
        return list(read_lines(self.path / "measurements.jsonl", Measurement))

    def measurements_frame(self) -> pd.DataFrame:
        """All measurements as a table, a row each, with the mean score over its items."""
        import pandas as pd

        def row(m: Measurement) -> dict[str, Any]:
            about = {"objective": m.objective.name, "role": m.objective.role, "split": m.split}
            measured = {"items": len(m.scores), "mean": sum(m.scores) / len(m.scores)}
            how = {"form": m.form, "curve": m.curve, "origin": m.origin, "seconds": m.seconds}
            return m.point.model_dump() | about | measured | how

        return pd.DataFrame([row(m) for m in self.measurements()])

    def __repr__(self) -> str:
        num = len(self.steps)
        return f"Run({self.path}: {num} checkpoint{'s' * (num != 1)}, base {self.base.model})"

    def record(self, measurement: Measurement) -> None:
        """Append a measurement; safe with several writers at once."""
        append_line(self.path / "measurements.jsonl", measurement.model_dump_json())

    def selection(self) -> Selection | None:
        """The latest selection, if there is one."""
        path = self.path / "selection.json"
        return read_record(path, Selection, self._choose_again) if path.exists() else None

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

    @property
    def _choose_again(self) -> str:
        return f"Choose again: {command('select', self.path)}."

    def sweep(self) -> Sweep | None:
        """The choices at other weights and bounds; None if the latest selection has no sweep."""
        path = self.path / "sweep.json"
        selection = self.selection()
        if selection is None or not path.exists():
            return None
        sweep = read_record(path, Sweep, self._choose_again)
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
        read = self._trajectory_places.read
        return {entry.step: _moved(entry, read) for entry in entries}

    @property
    def _trajectory_places(self) -> Places:
        return self.places.inside("trajectory")


def _with_paths(recipe: Recipe, change: Callable[[str], str]) -> Recipe:
    return Recipe.model_validate(with_paths(recipe.model_dump(mode="json"), change))


def _moved(entry: CheckpointEntry, change: Callable[[str], str]) -> CheckpointEntry:
    source = entry.source and change(entry.source)
    return entry.model_copy(update={"folder": change(entry.folder), "source": source})
