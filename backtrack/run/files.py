"""Read and write the files of a run: atomic writes, locked appends, checked records.

Promised: what was whole at a kill is read back whole. A last line cut short is passed over, and
the next one begins on a line of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from backtrack.errors import RunError
from backtrack.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RecordType = TypeVar("RecordType", bound=Record)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old or the new one, never a part; text as UTF-8."""
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
    """Append one line under a lock, on disk on return. A torn last line is closed first."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        torn = False
        if size:
            file.seek(size - 1)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on disk, so that a rename outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path, kind: type[RecordType]) -> Iterator[RecordType]:
    """Records of a JSON-lines file. A line cut short by a kill is passed over.

    Raises:
        RunError: A whole line is no such record.
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
    """A record from a JSON file.

    Raises:
        RunError: The file is unreadable, is no JSON or no such record.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(
            f"{path} cannot be read: {error}. Restore it from a copy, or adopt the run anew."
        ) from error
    return _validated(kind, values, str(path))


def _validated(kind: type[RecordType], values: object, where: str) -> RecordType:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise RunError(f"{where} is no valid {kind.__name__}: {field}: {first['msg']}.") from error
