"""Paths in the files of a run, written so that the run can move.

    written                         meaning
    embedded:demo/model             a file of this package, wherever it is installed
    ./base, ../../models/base       relative to the folder of the run
    /data/base, Qwen/Qwen2.5-7B     itself

A path is written as relative if it shares a folder other than the root with the run. Promised: it
is found when the run has moved together with what it names, and also when the run has moved alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

EMBEDDED = "embedded:"
"""What a path of this package begins with."""

ANOTHER_BASE = (
    "A run keeps its base. Adopt the checkpoints with another one: "
    "`backtrack adopt FOLDER --base NAME-OR-FOLDER --name NAME`."
)
"""What to do about checkpoints that do not fit the base of their run."""

_ASSETS = Path(__file__).resolve().parents[1] / "assets"
_INSTALLED = "/backtrack/assets/"
_RELATIVE = ("./", "../")


@dataclass(frozen=True)
class Places:
    """Where relative paths lead from.

    Attributes:
        folders: Absolute folders: where the run is, then where it was before, the latest first.
    """

    folders: tuple[Path, ...]

    def written(self, path: str) -> str:
        """A path as it is written into the run; names such as the Hub's are left as they are."""
        if not (Path(path).is_absolute() or path.startswith(_RELATIVE)):
            return path
        absolute = Path(os.path.normpath(Path(path).absolute()))
        if absolute.is_relative_to(_ASSETS):
            return EMBEDDED + absolute.relative_to(_ASSETS).as_posix()
        here = self.folders[0]
        if absolute.anchor != here.anchor or os.path.commonpath([absolute, here]) == here.anchor:
            return path
        relative = Path(os.path.relpath(absolute, here)).as_posix()
        return relative if relative.startswith("../") else f"./{relative}"

    def read(self, text: str) -> str:
        """Where a written path lies now: the first place that exists, else the first of all."""
        if not text.startswith(_RELATIVE):
            return of_package(text)
        candidates = [os.path.normpath(folder / text) for folder in self.folders]
        return next((path for path in candidates if Path(path).exists()), candidates[0])

    def inside(self, name: str) -> Places:
        """The places of a folder of the run."""
        return Places(tuple(folder / name for folder in self.folders))


def of_package(text: str) -> str:
    """The absolute path of a file of this package, named as such or as another installation's.

    Any other text, and a path that exists, is returned as it is.
    """
    if text.startswith(EMBEDDED):
        return str(_ASSETS / text.removeprefix(EMBEDDED))
    _, inside, name = Path(text).as_posix().rpartition(_INSTALLED)
    if inside and not Path(text).exists() and (_ASSETS / name).exists():
        return str(_ASSETS / name)
    return text


def base_name(name: str) -> str:
    """A base's absolute path, if it is given as a folder or `embedded:NAME`; else its name."""
    folder = Path(of_package(name))
    return str(folder.resolve()) if folder.is_dir() else name


def shown(path: str) -> str:
    """A path as messages show it: a file of this package by its own name."""
    if Path(path).is_absolute() and Path(path).is_relative_to(_ASSETS):
        return EMBEDDED + Path(path).relative_to(_ASSETS).as_posix()
    return path
