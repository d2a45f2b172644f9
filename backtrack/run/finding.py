"""Find runs: by path, by name in a folder of runs, or the newest."""

from __future__ import annotations

from pathlib import Path

from backtrack.errors import RunError
from backtrack.run.directory import MANIFEST


def is_run(path: Path) -> bool:
    """Whether a directory is a run."""
    return (path / MANIFEST).is_file()


def find_runs(folder: Path) -> tuple[Path, ...]:
    """Run directories in `folder`, newest first."""
    manifests = [path for path in folder.glob(f"*/{MANIFEST}") if path.is_file()]
    return tuple(
        p.parent for p in sorted(manifests, key=lambda p: (-p.stat().st_mtime_ns, str(p)))
    )


def find_run(name: str | None, folder: Path = Path("runs")) -> Path:
    """The directory of a run given by path or by name in `folder`; None is the newest run.

    Raises:
        RunError: There is no such run.
    """
    if name is not None:
        for path in (Path(name), folder / name):
            if path.is_dir():
                return path
        known = ", ".join(path.name for path in find_runs(folder)[:8]) or "none"
        raise RunError(
            f"there is no run {name!r}: neither a folder nor a name in {folder}/ (known: {known})."
        )
    if Path(MANIFEST).is_file():
        return Path()
    newest = find_runs(folder)
    if not newest:
        raise RunError(
            f"there is no run in {folder.resolve()}. Train one with `backtrack train RECIPE`, "
            "adopt checkpoints with `backtrack adopt FOLDER`, or try `backtrack demo`."
        )
    return newest[0]
