"""The weights that a Trainer's script saved last, beside the `checkpoint-*` folders.

They are the last checkpoint again, the best one again, or later than every checkpoint: what is
usually served. In the last case they are a step of their own if it is known which.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtrack.errors import CheckpointError, RunError
from backtrack.run.checkpoint_reader import shapes
from backtrack.run.checkpoint_writer import WEIGHT_SUFFIX, describe_checkpoint, is_adapter
from backtrack.run.files import read_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.records import CheckpointEntry

logger = logging.getLogger(__name__)


def last_save(source: Path, entries: Sequence[CheckpointEntry]) -> list[CheckpointEntry]:
    """The weights beside the checkpoints as a step of their own; empty if they are one of them.

    Args:
        source: Folder with the checkpoints.
        entries: The checkpoints, by step.

    Raises:
        CheckpointError: They are no checkpoint's and cannot be a step; says why.
    """
    last = entries[-1]
    if not _has_model(source) or last.source or Path(last.folder) == source:
        return []
    saved = describe_checkpoint(source, max(_last_step(source, last), 1), folder=str(source))
    if any(saved.sha256 == entry.sha256 for entry in entries):
        return []
    reason = None
    if is_adapter(source) != is_adapter(Path(last.folder)):
        reason = "they are an adapter where the checkpoints are whole models, or the reverse"
    elif shapes(source) != shapes(Path(last.folder)):
        reason = "their tensors are not those of the last checkpoint"
    elif saved.step <= last.step:
        reason = "it is not known at which step they were saved"
    if reason is not None:
        raise CheckpointError(
            f"the weights in {source} itself are none of its checkpoints, and {reason}. To "
            f"measure them too, copy their files into {source / 'checkpoint-STEP'}."
        )
    logger.info("%s: the weights beside the checkpoints are step %d", source, saved.step)
    return [saved]


def _has_model(source: Path) -> bool:
    is_named = is_adapter(source) or (source / "config.json").is_file()
    return is_named and any(source.glob(f"*{WEIGHT_SUFFIX}"))


def _last_step(source: Path, last: CheckpointEntry) -> int:
    """The step at which a training ended that is later than its last checkpoint; 0 if unknown.

    The Trainer's state says it, if it was saved with the weights. Else the last checkpoint's state
    does, if the training was to end before the next checkpoint.
    """
    if (step := _state(source).get("global_step", 0)) > last.step:
        return step
    inside = Path(last.folder).relative_to(source)
    state = _state(source / inside.parts[0])
    end = state.get("max_steps", 0)
    return end if last.step < end < last.step + state.get("save_steps", 0) else 0


def _state(folder: Path) -> dict[str, int]:
    """The whole numbers in a Trainer's state; empty if there is none that can be read."""
    path = folder / "trainer_state.json"
    try:
        state = read_record(path, dict[str, Any]) if path.is_file() else {}
    except RunError:
        return {}
    return {key: value for key, value in state.items() if type(value) is int}
