"""Read and write the files of a run: atomic writes, locks, locked appends, checked records.

Promised: a file that was whole when a process was killed is read back whole. An incomplete last
line is skipped, and the next append removes it. Other damage is named with its file, line and
cause. A lock ends with the process that holds it.
"""

from __future__ import annotations

import codecs
import logging
import os
import uuid
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import lock_descriptor
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from backtrack.errors import RunError
from backtrack.formatting import cut, shortened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

Value = TypeVar("Value")

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.005

_CAUSES = {
    "EOF while parsing": "it ends inside",
    "recursion limit exceeded": "it is nested too deeply",
    "number out of range": "a number has too many digits",
    "invalid unicode code point": "it is not UTF-8",
    "unexpected end of hex escape": "a lone surrogate",
    "lone leading surrogate in hex escape": "a lone surrogate",
}
"""Plain words for the JSON parser's own."""


def state_folder() -> Path:
    """The user's own folder for what commands remember; it may not exist yet."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "backtrack"


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
    """Append one line under a lock, on disk on return. An incomplete last line is removed."""
    with path.open("a+b") as file:
        lock_descriptor(file.fileno(), poll_interval=_POLL_SECONDS)
        is_closed = _remove_torn_end(file)
        file.write((b"" if is_closed else b"\n") + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _remove_torn_end(file: BinaryIO) -> bool:
    """Remove a last line that is not whole JSON; return whether the file ends with a newline."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    if file.read(1) in (b"", b"\n"):
        return True
    file.seek(0)
    end = file.read().rpartition(b"\n")[2]
    try:
        from_json(end)
    except ValueError:
        file.truncate(size - len(end))
        return True
    return False


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
def hold_lock(path: Path) -> Iterator[bool]:
    """Hold a lock for the `with` block if it is free; yield whether it was.

    Args:
        path: The lock file; created if missing.
    """
    with _open_lock(path) as file:
        yield lock_descriptor(file.fileno(), blocking=False)


def _open_lock(path: Path) -> BinaryIO:
    try:
        return path.open("ab")
    except OSError:  # no permission, or a read-only file system, which is another error
        return path.open("rb")  # a read-only run can still be inspected


def read_lines(path: Path, kind: type[Value], *, skips_invalid: bool = False) -> Iterator[Value]:
    """Records of a JSON-lines file; none if it is missing.

    An incomplete last line, left by a killed process, is skipped. Other lines that are not JSON
    are skipped too, and a warning counts them.

    Args:
        path: The file.
        kind: Type of a line's record.
        skips_invalid: Also skip lines that are JSON but no valid record, instead of raising.

    Raises:
        RunError: The file cannot be read, or a line is JSON but no valid record.
    """
    validator = TypeAdapter(kind)
    damaged: list[tuple[int, str]] = []
    lines = _read_bytes(path).split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = _validated(validator, parse_json(line))
        except (ValueError, TypeError) as error:
            if isinstance(error, TypeError) and not skips_invalid:
                raise RunError(f"{path}, line {number} is damaged: {error}.") from error
            if number < len(lines):
                damaged.append((number, str(error).replace("at line 1 column", "at column")))
            continue
        yield record
    if damaged:
        _warn_once(path, len(damaged), *damaged[0])


@cache
def _warn_once(path: Path, num_damaged: int, number: int, cause: str) -> None:
    """Warn of damaged lines, once in a process however often the file is read."""
    logger.warning(
        "%s, line %d is truncated or damaged: %s. %d damaged line%s skipped, as if never written.",
        path, number, cause, num_damaged, " was" if num_damaged == 1 else "s were",
    )  # fmt: skip


def read_record(path: Path, kind: type[Value], remedy: str = "Restore it from a copy.") -> Value:
    """Read a value of a given type from a JSON file.

    Args:
        path: The file.
        kind: A record, or another type that pydantic validates, such as `dict[str, int]`.
        remedy: What to do about a damaged file; ends the message of the error.

    Raises:
        RunError: The file cannot be read, is not JSON, or not of this type.
    """
    try:
        return parse_record(_read_bytes(path), kind)
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}. {remedy}") from error


def parse_record(content: str | bytes, kind: type[Value]) -> Value:
    """Parse a value of a given type from JSON.

    Raises:
        ValueError: With the cause: `content` is not JSON, or not of this type.
    """
    try:
        return _validated(TypeAdapter(kind), parse_json(content))
    except TypeError as error:
        raise ValueError(str(error)) from error


def parse_json(content: str | bytes) -> Any:
    """Parse JSON in UTF-8.

    Raises:
        ValueError: With cause, line and column: `content` is not JSON, is nested too deeply, or
            holds a number of thousands of digits or a lone surrogate.
    """
    data = content.encode() if isinstance(content, str) else content
    if data.startswith(codecs.BOM_UTF8):
        raise ValueError("it starts with a byte order mark")
    try:
        return from_json(data)
    except ValueError as error:
        text = str(error)
        for jargon, cause in _CAUSES.items():
            text = text.replace(jargon, cause)
        raise ValueError(text) from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from error


def _validated(validator: TypeAdapter[Value], values: object) -> Value:
    """Validate parsed JSON; TypeError tells valid JSON of a wrong type from damaged text."""
    try:
        return validator.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = cut(".".join(str(part) for part in first["loc"]))
        value = "" if first["type"] == "missing" else f", got {shortened(first['input'])}"
        raise TypeError(
            f"{field}{': ' if field else ''}{cut(first['msg'], 200)}{value}"
        ) from error
