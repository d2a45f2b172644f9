"""Carry a run to a machine that does not see its folder.

What a measurer reads of a run is carried: manifest, recipes, the model's own files and the
trajectory. Not carried: measurements, which the driver has, and checkpoints that an adopted run
only refers to, which must lie on a path that every machine sees, as must a base given by folder.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from backtrack.run.directory import INITIAL, MANIFEST, MODEL_FILES, RESOLVED, Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

CARRIED = (MANIFEST, RESOLVED, MODEL_FILES, INITIAL, "trajectory")


def is_at(path: Path, digest: str) -> bool:
    """Whether the run with this digest lies at `path` on this machine."""
    return (path / MANIFEST).is_file() and run_digest(path) == digest


def run_digest(path: Path) -> str:
    """Digest of a run's manifest and of the index of its checkpoints."""
    files = (path / MANIFEST, path / "trajectory" / "index.jsonl")
    return sha256(b"\n".join(file.read_bytes() for file in files)).hexdigest()


def files_to_carry(run: Run) -> Iterator[str]:
    """The files of a run that a measurer reads, relative to the run."""
    for name in CARRIED:
        path = run.path / name
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (file.relative_to(run.path).as_posix() for file in files if file.is_file())


def write_copy(folder: Path, contents: Mapping[str, bytes]) -> Run:
    """Write a carried run into a folder, and open it."""
    for name, content in contents.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{name} points outside the run")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return Run.open(folder)
