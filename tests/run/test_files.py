"""Locks: held by one, free again when their holder ends."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backtrack.run.files import hold_lock


def test_a_lock_that_is_held_is_not_had_by_another(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with hold_lock(lock) as is_free:
        assert is_free
        with hold_lock(lock) as is_free_too:
            assert not is_free_too
    with hold_lock(lock) as is_free:
        assert is_free


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    code = (
        "import sys; from pathlib import Path; from backtrack.run.files import hold_lock\n"
        f"with hold_lock(Path({str(lock)!r})) as is_free:\n"
        "    print(is_free, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with hold_lock(lock) as is_free:
            assert not is_free
        holder.kill()
        holder.wait()
        with hold_lock(lock) as is_free:
            assert is_free


def test_a_lock_on_a_read_only_file_system_can_still_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / ".lock"
    lock.touch()
    real = Path.open

    def read_only(path: Path, mode: str = "r", **others: Any) -> Any:
        if path == lock and "r" not in mode:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, mode, **others)

    monkeypatch.setattr(Path, "open", read_only)
    with hold_lock(lock) as is_free:
        assert is_free
