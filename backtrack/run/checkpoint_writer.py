"""Write checkpoints into a run.

Promised: a checkpoint is either absent or complete whenever the process is killed: it is written
under a partial name, synced to disk, renamed, and only then added to the index. A step written
again gets a new folder, and the old one is deleted when the index names the new one.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import shutil
import sys
import uuid
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from backtrack.errors import CheckpointError, RunError
from backtrack.records import CheckpointEntry
from backtrack.records.adapter_config import ADAPTER_CONFIG, path_fields
from backtrack.records.record import short_digest
from backtrack.run.codec import CODED_FILE, read_table
from backtrack.run.files import read_record, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from backtrack.run.directory import Run

WEIGHT_SUFFIX = ".safetensors"

_FOLDER = re.compile(r"^step-(\d+)(?:\.\d+)?$")
logger = logging.getLogger(__name__)


def write_checkpoint(
    run: Run,
    step: int,
    write: Callable[[Path], None],
    *,
    train_loss: float | None = None,
    distance: float | None = None,
) -> CheckpointEntry:
    """Add a checkpoint to a run's trajectory.

    If the step is already saved with the same model, as after a resume, nothing changes.

    Args:
        run: The run.
        step: Optimizer step, from 1.
        write: Called with an empty folder to fill with safetensors and JSON.
        train_loss: The training loss logged last.
        distance: See `CheckpointEntry`.

    Raises:
        CheckpointError: `write` wrote no weights.
        OSError: The disk is full or missing; nothing of the checkpoint remains.
    """
    name = _free_name(run, step)
    partial = run.trajectory / f".{name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir(parents=True)
    try:
        write(partial)
        entry = describe_checkpoint(partial, step, folder=name, train_loss=train_loss)
        if step in run.steps and entry.is_same(run.entry(step)):
            shutil.rmtree(partial)
            return run.entry(step)
        _sync_tree(partial)
        partial.rename(run.trajectory / name)
        sync_folder(run.trajectory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    entry = entry.model_copy(update={"distance": distance})
    run.add_entry(entry)
    remove_folders(run, step, but=name)
    logger.info("wrote step %d: %s, %d bytes", step, entry.storage, entry.num_bytes)
    return entry


def describe_checkpoint(
    weights: Path, step: int, *, folder: str, train_loss: float | None = None
) -> CheckpointEntry:
    """The index entry for a folder of weights.

    Raises:
        CheckpointError: The folder has no safetensors, or a damaged adapter's configuration.
    """
    files = weight_files(weights)
    is_coded = [path.name for path in files] == [CODED_FILE]
    table = read_table(files[0]) if is_coded else None
    return CheckpointEntry(
        step=step,
        folder=folder,
        num_bytes=sum(path.stat().st_size for path in files),
        sha256={path.name: digest(path) for path in files},
        train_loss=train_loss,
        storage="coded" if is_coded else "plain",
        modified_ns=latest_change(files),
        reference=table.reference if table else None,
        content=table.content if table else "",
        config=config_digest(weights) if is_adapter(weights) else "",
    )


def config_digest(folder: Path) -> str:
    """Digest of what decides an adapter's model beside its weights, such as `lora_alpha`.

    Raises:
        CheckpointError: The configuration is damaged.
    """
    try:
        config = read_record(folder / ADAPTER_CONFIG, dict[str, Any])
    except RunError as error:
        raise CheckpointError(str(error)) from error
    return short_digest(path_fields(config))


def latest_change(files: Iterable[Path]) -> int:
    """When the last of the files was modified, in nanoseconds."""
    return max(path.stat().st_mtime_ns for path in files)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that stock libraries read from a folder, by name.

    Others beside them are ignored: shards of an earlier save, an averaged copy, the same weights
    again as `consolidated.safetensors`, the merged model that torchtune writes beside an adapter.
    Only if none has a stock name is every file taken.

    Raises:
        CheckpointError: There are none, or one that the index names is missing; pickled weights
            are named but never read.
    """
    stock = folder / ("adapter_model" if is_adapter(folder) else "model")
    if (single := stock.with_suffix(WEIGHT_SUFFIX)).is_file():
        return (single,)
    if (index := stock.with_suffix(f"{WEIGHT_SUFFIX}.index.json")).is_file():
        return _indexed_files(index)
    files = tuple(sorted(folder.glob(f"*{WEIGHT_SUFFIX}")))
    prefixes = (stock.name, "ft-model", CODED_FILE)
    if files:
        return tuple(path for path in files if path.name.startswith(prefixes)) or files
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickled:
        raise CheckpointError(
            f"{folder} has only pickled weights ({pickled[0].name}), which are never read. "
            "Save them as safetensors: `model.save_pretrained(folder)` with a current "
            "transformers or PEFT."
        )
    raise CheckpointError(f"{folder} has no weights: there is no {WEIGHT_SUFFIX} file.")


def _indexed_files(index: Path) -> tuple[Path, ...]:
    """The files that an index of shards names."""
    try:
        shards = read_record(index, dict[str, Any]).get("weight_map")
    except RunError as error:
        raise CheckpointError(str(error)) from error
    names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
    beside = {path.name for path in index.parent.glob(f"*{WEIGHT_SUFFIX}")}
    missing = [name for name in names if name not in beside]
    if missing or not names:
        raise CheckpointError(
            f"{index.parent} is incomplete: {missing[0] if missing else 'no file'} is named by "
            f"{index.name} and is missing. Copy it from where the model was saved, or save again."
        )
    return tuple(index.parent / name for name in names)


def is_adapter(folder: Path) -> bool:
    """Whether a checkpoint is a PEFT adapter rather than a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_once(path: Path) -> str:
    """sha256 of a file, computed once per process while the file stays unchanged.

    Raises:
        OSError: The file is missing.
    """
    facts = path.stat()
    return _digest_of(path, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1 << 14)
def _digest_of(path: Path, *_facts: int) -> str:
    return digest(path)


def clean_up(run: Run) -> None:
    """Clean up what a killed writer left.

    Incomplete folders are deleted. A complete folder that is missing from the index is added to
    it; a folder that the index has replaced or marked as deleted is deleted.
    """
    for partial in run.trajectory.glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    dropped = {entry.step for entry in run.all_entries(up_to=sys.maxsize) if entry.is_dropped}
    for folder in sorted(run.trajectory.glob("step-*")):
        match = _FOLDER.match(folder.name)
        step = int(match.group(1)) if match else 0
        if not step or (step in run.steps and run.entry(step).folder == folder.name):
            continue
        if step in run.steps or step in dropped:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        _recover(run, step, folder)


def _recover(run: Run, step: int, folder: Path) -> None:
    try:
        run.add_entry(describe_checkpoint(folder, step, folder=folder.name))
        logger.warning("step %d was complete but not in the index of %s: added", step, run.path)
    except CheckpointError as error:
        logger.warning("step %d is not in the index and cannot be added: %s", step, error)


def remove_folders(run: Run, step: int, *, but: str = "") -> None:
    """Delete the folders of a step, except the one named `but`."""
    for folder in run.trajectory.glob(f"step-{step:08d}*"):
        if folder.name != but:
            shutil.rmtree(folder, ignore_errors=True)


def _free_name(run: Run, step: int) -> str:
    plain = f"step-{step:08d}"
    names = itertools.chain([plain], (f"{plain}.{number}" for number in itertools.count(2)))
    return next(name for name in names if not (run.trajectory / name).exists())


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
