"""Write checkpoints into a run.

Promised: a checkpoint is either absent or whole, at any kill: it is written under a partial name,
put on disk, renamed, and only then named in the index. A step written again replaces the old one
only when the new one is whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from typing import TYPE_CHECKING

from backtrack.errors import CheckpointError
from backtrack.records import CheckpointEntry
from backtrack.run.directory import sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backtrack.run.directory import Run

WEIGHT_SUFFIX = ".safetensors"


def write_checkpoint(
    run: Run, step: int, write: Callable[[Path], None], *, train_loss: float | None = None
) -> CheckpointEntry:
    """Add a checkpoint to a run's trajectory.

    Args:
        run: The run.
        step: Optimizer step, from 1.
        write: Called with an empty folder to fill with safetensors and JSON.
        train_loss: Loss logged last.

    Raises:
        CheckpointError: `write` left no weights.
        OSError: The disk is full or gone; nothing of the checkpoint remains.
    """
    name = f"step-{step:08d}"
    clear_partials(run)
    partial = run.trajectory / f".{name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir(parents=True)
    try:
        write(partial)
        entry = describe_checkpoint(partial, step, folder=name, train_loss=train_loss)
        _sync_tree(partial)
        _replace(partial, run.trajectory / name)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    run.add_entry(entry)
    return entry


def describe_checkpoint(
    weights: Path, step: int, *, folder: str, train_loss: float | None = None
) -> CheckpointEntry:
    """The index's line for a folder of weights.

    Raises:
        CheckpointError: It has no safetensors.
    """
    files = weight_files(weights)
    return CheckpointEntry(
        step=step,
        folder=folder,
        num_bytes=sum(path.stat().st_size for path in files),
        sha256={path.name: digest(path) for path in files},
        train_loss=train_loss,
    )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors of a folder, by name.

    Where the files that transformers and PEFT name are there, others are passed over: some
    repositories hold the same weights a second time as `consolidated.safetensors`.

    Raises:
        CheckpointError: There are none; pickled weights are named but never read.
    """
    files = tuple(sorted(folder.glob(f"*{WEIGHT_SUFFIX}")))
    named = tuple(path for path in files if path.name.startswith(("model", "adapter_model")))
    if files:
        return named or files
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickled:
        raise CheckpointError(
            f"{folder} holds pickled weights only ({pickled[0].name}), which are never read. "
            "Save them as safetensors: `model.save_pretrained(folder)` with a current "
            "transformers or PEFT."
        )
    raise CheckpointError(f"{folder} holds no weights: no {WEIGHT_SUFFIX} file.")


def is_adapter(folder: Path) -> bool:
    """Whether a checkpoint is a PEFT adapter rather than a whole model."""
    return (folder / "adapter_config.json").is_file()


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clear_partials(run: Run) -> None:
    """Remove what killed writers left unfinished."""
    for partial in run.trajectory.glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _replace(partial: Path, final: Path) -> None:
    """Rename over an older checkpoint of the step, which is moved aside first and then removed."""
    old = None
    if final.exists():
        old = final.with_name(f".{final.name}.old.partial")
        final.rename(old)
    partial.rename(final)
    sync_folder(final.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
