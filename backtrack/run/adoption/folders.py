"""Find the checkpoints in a folder that another trainer wrote."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from backtrack.errors import CheckpointError, RunError
from backtrack.run.checkpoint_writer import WEIGHT_SUFFIX, is_adapter
from backtrack.run.foreign.formats import find_weights

if TYPE_CHECKING:
    from pathlib import Path

_CHECKPOINT = re.compile(r"^(checkpoint|step|global_step|epoch)[-_]?(\d+)$")
_SUBFOLDERS = ("actor/lora_adapter", "lora_adapter", ".", "actor/huggingface", "huggingface")
"""Subfolders of a checkpoint that may have its safetensors; all but its own are verl's.

The model that verl's merger writes around an adapter is the base.
"""


def folder_of_run(source: Path) -> Path:
    """The folder that has the checkpoints: the source, or the only one in it that has some.

    ms-swift writes each training into a folder of its own, such as `v0-20250101-120000`.

    Raises:
        RunError: The source is no folder, or several folders in it have checkpoints.
    """
    if not source.is_dir():
        raise RunError(
            f"{source} is not a folder. Name one with `checkpoint-*`, an adapter or a model."
        )
    if _numbered(source) or _has_weights(source):
        return source
    inner = [
        folder for folder in sorted(source.iterdir()) if folder.is_dir() and _numbered(folder)
    ]
    if len(inner) > 1:
        names = ", ".join(folder.name for folder in inner)
        raise RunError(
            f"{source} has the checkpoints of {len(inner)} trainings: {names}. Name one of them."
        )
    return inner[0] if inner else source


def find_checkpoints(source: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint, ascending.

    Weights beside `checkpoint-*` folders are no checkpoint of their own; see `last_save`.

    Raises:
        RunError: There is none.
    """
    if numbered := _numbered(source):
        return numbered
    if _has_weights(source):
        return [(1, source)]
    raise RunError(
        f"{source} has no checkpoint: no `checkpoint-*` folder, no adapter_config.json and no "
        "config.json. Name the folder a Trainer wrote into (its output_dir), an adapter or a "
        "model."
    )


def plain_weights(folder: Path) -> Path | None:
    """The folder of a checkpoint's safetensors: itself or one inside it; None if there is none.

    PEFT saves an adapter under another name than `default` into a folder of that name.

    Raises:
        CheckpointError: It has several named adapters.
    """
    for path in (folder / name for name in _SUBFOLDERS):
        if any(path.glob(f"*{WEIGHT_SUFFIX}")):
            return path
    adapters = sorted(path.parent for path in folder.glob("*/adapter_config.json"))
    if len(adapters) > 1:
        raise CheckpointError(
            f"{folder} has {len(adapters)} adapters: {', '.join(a.name for a in adapters)}. Copy "
            f"the files of the one to measure into {folder}."
        )
    return adapters[0] if adapters else None


def _numbered(source: Path) -> list[tuple[int, Path]]:
    """Folders with a step in their name, ascending; step 0, which is the base, is left out."""
    named = [(_CHECKPOINT.match(folder.name), folder) for folder in source.iterdir()]
    found = [(match, folder) for match, folder in named if match and folder.is_dir()]
    # Epochs are counted from 0.
    steps = [(int(m.group(2)) + (m.group(1) == "epoch"), folder) for m, folder in found]
    return sorted((step, folder) for step, folder in steps if step)


def _has_weights(source: Path) -> bool:
    has_model = is_adapter(source) or (source / "config.json").is_file()
    return has_model or bool(find_weights(source)) or any(source.glob("*/adapter_config.json"))
