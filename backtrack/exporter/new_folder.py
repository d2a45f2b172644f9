"""A folder that an export fills: it appears under its name when it is whole, or not at all.

Promised: an error, an interrupt or a full disk leaves nothing behind. What a killed export left is
deleted by the next one into the same folder; a living one holds a lock on what it writes.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from contextlib import contextmanager, suppress
from glob import escape
from typing import TYPE_CHECKING

from filelock import lock_descriptor
from safetensors import SafetensorError

from backtrack.errors import ExportError, UsageError
from backtrack.formatting import one_line
from backtrack.run.files import sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)


def require_new(folder: Path) -> None:
    """Refuse a folder that has something in it, before anything is loaded.

    Raises:
        UsageError: Says what is there.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Name a new folder.")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists and is not empty. Name a new folder.")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which takes its name at the end.

    Raises:
        ExportError: The disk is full or cannot be written to.
    """
    try:
        _delete_leftovers(folder)
        partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
        partial.mkdir(parents=True)
        try:
            with _open(partial) as descriptor:
                lock_descriptor(descriptor, blocking=False)
                yield partial
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(error).rstrip(".")
        if isinstance(error, OSError) and error.errno is None:
            raise  # what transformers raises where a model does not load
        raise ExportError(
            f"{folder} could not be written: {reason}. Nothing of it is left. Free disk space, or "
            "name a folder elsewhere, then export again."
        ) from error


def _delete_leftovers(folder: Path) -> None:
    """Delete what killed exports into this folder left beside it."""
    for left in folder.parent.glob(f".{escape(folder.name)}.*.partial"):
        with suppress(OSError), _open(left) as descriptor:
            if lock_descriptor(descriptor, blocking=False):  # else an export is writing it
                shutil.rmtree(left)
                logger.warning("deleted %s, left by an export that was killed", left)


@contextmanager
def _open(folder: Path) -> Iterator[int]:
    """A descriptor of a folder; closing it, or the end of the process, gives up its lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
