"""The files of a run's model besides its weights: configuration, generation, tokenizer, template.

Along the path only weights move: all else is the last checkpoint's at every point, the base
included. A run keeps the checkpoint's own files in `model/`, so that it can be moved; a kind of
file that the checkpoint lacks is the base's.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from backtrack.run.checkpoint_reader import base_folder
from backtrack.run.checkpoint_writer import is_adapter
from backtrack.run.directory import MODEL_FILES
from backtrack.run.files import read_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from backtrack.run.directory import Run

CONFIG = "config.json"
GENERATION = "generation_config.json"

_Kind = Literal["config", "generation", "template", "tokenizer"]
_Paths = dict[str, Path]
_PATTERNS: Mapping[_Kind, tuple[str, ...]] = {
    "config": (CONFIG, "*.py"),
    "generation": (GENERATION,),
    "template": ("chat_template.*", "additional_chat_templates/*"),
    "tokenizer": (
        "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
        "spiece.model", "sentencepiece*", "*.tiktoken", "*processor_config.json",
    ),
}  # fmt: skip
_MARKS: Mapping[_Kind, frozenset[str]] = {
    "config": frozenset({CONFIG}),
    "tokenizer": frozenset({"tokenizer_config.json", "tokenizer.json"}),
}
"""Files of which a folder has at least one if it has this kind; any other kind has no mark."""


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model besides its weights.

    Attributes:
        paths: Where each file lies, by its name in a model's folder.
    """

    paths: Mapping[str, Path]

    def write(self, folder: Path) -> None:
        """Copy every file into a folder, which is created if missing."""
        for name, path in self.paths.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)

    @contextmanager
    def in_folder(self) -> Iterator[Path]:
        """A temporary folder with every file, as stock transformers reads them."""
        with tempfile.TemporaryDirectory(prefix="backtrack-model-") as folder:
            self.write(Path(folder))
            yield Path(folder)

    def read(self, name: str) -> dict[str, Any]:
        """The content of a JSON file; empty if there is no such file.

        Raises:
            RunError: The file is damaged.
        """
        path = self.paths.get(name)
        return {} if path is None else read_record(path, dict[str, Any])


def model_files(run: Run) -> ModelFiles:
    """The files of a run's model besides its weights, at every point of the path.

    Raises:
        RunError: The run has no checkpoint, or its base is not available.
    """
    checkpoint = run.folder(run.final.step)
    own = _nearest((run.path / MODEL_FILES, checkpoint), has_config=not is_adapter(checkpoint))
    if "config" in own:  # a whole model without a generation config generates by its config
        own.setdefault("generation", {})
    if "tokenizer" in own:
        own.setdefault("template", {})
    return _joined(_of_base(run) | own)


def base_files(run: Run) -> ModelFiles:
    """The files of a run's base besides its weights.

    Raises:
        RunError: The base is not available.
    """
    return _joined(_of_base(run))


def keep_model_files(run: Path, folders: Iterable[Path], *, has_config: bool) -> None:
    """Copy a checkpoint's own files into its run; those kept before are replaced.

    Args:
        run: The run's directory.
        folders: Where the files may lie, the nearest to the weights first.
        has_config: Whether config.json is the checkpoint's; that of an adapter is the base's.
    """
    partial = run / f".{MODEL_FILES}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    _joined(_nearest(folders, has_config=has_config)).write(partial)
    shutil.rmtree(run / MODEL_FILES, ignore_errors=True)
    partial.rename(run / MODEL_FILES)


def _of_base(run: Run) -> dict[_Kind, _Paths]:
    return _nearest((base_folder(run.base),), has_config=True)


def _nearest(folders: Iterable[Path], *, has_config: bool) -> dict[_Kind, _Paths]:
    """The files of each kind, from the first folder that has the kind.

    A tokenizer brings its own template, if any: one in a later folder is another tokenizer's.
    """
    wanted: set[_Kind] = set(get_args(_Kind)) - (set() if has_config else {"config"})
    found: dict[_Kind, _Paths] = {}
    for folder in folders:
        here = {kind: _files_of(folder, kind) for kind in wanted}
        found |= {kind: paths for kind, paths in here.items() if paths}
        wanted -= found.keys() | ({"template"} if "tokenizer" in found else set())
    return found


def _files_of(folder: Path, kind: _Kind) -> _Paths:
    paths = {
        path.relative_to(folder).as_posix(): path
        for pattern in _PATTERNS[kind]
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }
    marks = _MARKS.get(kind)
    return paths if marks is None or marks & paths.keys() else {}


def _joined(by_kind: Mapping[_Kind, _Paths]) -> ModelFiles:
    return ModelFiles({name: path for paths in by_kind.values() for name, path in paths.items()})
