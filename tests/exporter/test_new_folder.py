"""The folder of an export: whole or absent, also on a full disk and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backtrack.errors import ExportError, UsageError
from backtrack.exporter.new_folder import require_new, whole_folder
from tests.models import make_base, make_full_run

CHILD = """
import sys, time
from pathlib import Path
from backtrack.exporter.new_folder import whole_folder
with whole_folder(Path(sys.argv[1])) as partial:
    (partial / "half").write_text("a")
    print("writing", flush=True)
    time.sleep(600)
"""


def test_what_is_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    with pytest.raises(UsageError, match=r"file is a file. Name a new folder"):
        require_new(tmp_path / "file")
    with pytest.raises(UsageError, match="exists and is not empty"):
        require_new(tmp_path)


def test_what_a_killed_export_left_is_deleted_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "o[u]t"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, folder], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    with pytest.raises(RuntimeError), whole_folder(folder):
        raise RuntimeError
    (left,) = tmp_path.iterdir()
    assert (left / "half").exists()
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    with whole_folder(folder) as partial:
        (partial / "whole").write_text("b")
    assert [path.name for path in tmp_path.iterdir()] == ["o[u]t"]
    assert (folder / "whole").read_text() == "b"


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        from backtrack.exporter.write import export

        run = make_full_run(tmp_path / "run", make_base(tmp_path / "base", width=64))
        with pytest.raises(ExportError, match=r"out could not be written: .*Free disk space"):
            export(run, run.final, small / "out")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
