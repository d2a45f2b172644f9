"""Read and write the files of a run: atomic writes, locks, locked appends, checked records.

Promised: a file that was whole when a process was killed is read back whole. An incomplete last
line is skipped, and the next append starts a new line. A lock ends with the process that holds it.
"""

from __future__ import annotations

import itertools
import json
import os
import time
import uuid
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from filelock import lock_descriptor
from pydantic import ValidationError

from backtrack.errors import RunError
from backtrack.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

RecordType = TypeVar("RecordType", bound=Record)

_POLL_SECONDS = 0.005
_GATE_SECONDS = 2.0
"""How long a shared holder waits for the main lock, which others hold only for a moment."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: a reader sees the old or the new content. Text is UTF-8."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line under a lock, on disk on return. An incomplete last line is closed first."""
    with path.open("a+b") as file:
        lock_descriptor(file.fileno(), poll_interval=_POLL_SECONDS)
        size = file.seek(0, os.SEEK_END)
        is_torn = False
        if size:
            file.seek(size - 1)
            is_torn = file.read(1) != b"\n"
        file.write((b"\n" if is_torn else b"") + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, so that a rename survives a power cut."""
    if os.name == "nt":  # Windows does not open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def hold_lock(path: Path, *, is_shared: bool = False) -> Iterator[bool]:
    """Hold a lock for the `with` block if it is free; yield whether it was.

    Shared holders hold it together, each through a lock file of its own beside `path`; any other
    holder holds it alone.

    Args:
        path: The lock file; created if missing.
        is_shared: Whether other shared holders may hold it at the same time.
    """
    with ExitStack() as stack:
        is_held = _lock_shared(path, stack) if is_shared else _lock_alone(path, stack)
        if not is_held:
            stack.close()
        yield is_held


def _lock_alone(path: Path, stack: ExitStack) -> bool:
    return all(_lock(file, stack) for file in (path, *path.parent.glob(f"{path.name}.*")))


def _lock_shared(path: Path, stack: ExitStack) -> bool:
    with ExitStack() as gate:
        if not _lock(path, gate, patience_seconds=_GATE_SECONDS):
            return False
        shares = (path.with_name(f"{path.name}.{number}") for number in itertools.count())
        return any(_lock(share, stack) for share in shares)


def _lock(path: Path, stack: ExitStack, *, patience_seconds: float = 0) -> bool:
    """Lock a file until the stack closes, or return False if it stays locked by another."""
    file = _open_lock(path)
    deadline = time.monotonic() + patience_seconds
    while not lock_descriptor(file.fileno(), blocking=False):
        if time.monotonic() >= deadline:
            file.close()
            return False
        time.sleep(_POLL_SECONDS)
    stack.callback(file.close)
    return True


def _open_lock(path: Path) -> BinaryIO:
    try:
        return path.open("ab")
    except PermissionError:
        return path.open("rb")  # a read-only run can still be inspected


def read_lines(path: Path, kind: type[RecordType]) -> Iterator[RecordType]:
    """Records of a JSON-lines file. A line truncated by a kill is skipped.

    Raises:
        RunError: A complete line is not a valid record.
    """
    if not path.exists():
        return
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").split("\n"), 1
    ):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        yield _validated(kind, values, f"{path}, line {number}")


def read_record(path: Path, kind: type[RecordType]) -> RecordType:
    """Read a record from a JSON file.

    Raises:
        RunError: The file is unreadable, not JSON, or not a valid record.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(
            f"{path} cannot be read: {error}. Restore it from a copy, or adopt the run again."
        ) from error
    return _validated(kind, values, str(path))


def _validated(kind: type[RecordType], values: object, where: str) -> RecordType:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise RunError(
            f"{where} is not a valid {kind.__name__}: {field}: {first['msg']}."
        ) from error
