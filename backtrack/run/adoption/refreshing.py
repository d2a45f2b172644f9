"""Notice that checkpoints of an adopted run changed where they lie, and digest them again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtrack.errors import CheckpointError, RunError
from backtrack.run.checkpoint_writer import config_digest, digest, latest_change, weight_files
from backtrack.run.foreign.formats import weight_files_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.records import CheckpointEntry
    from backtrack.run.directory import Run

logger = logging.getLogger(__name__)


def refresh(run: Run) -> None:
    """Digest the checkpoints of an adopted run again where their files changed since.

    A checkpoint that was replaced is named in a warning. Measurements name the digest, so its
    points count as not measured, and those of other checkpoints stay.
    """
    if run.manifest.source is None:
        return
    replaced = []
    for entry in run.entries():
        new = _digested_again(run, entry)
        if new != entry:
            run.add_entry(new)
            replaced += [entry.step] if new.digest != entry.digest else []
    tell_replaced(run, replaced)


def _digested_again(run: Run, entry: CheckpointEntry) -> CheckpointEntry:
    """The entry as its files are now; unchanged if they are, or if they cannot be read."""
    try:
        folder = run.folder(entry.step)
        source = Path(entry.source) if entry.source else None
        files = weight_files_of(entry.storage, source) if source else weight_files(folder)
        facts: dict[str, Any] = {
            "num_bytes": sum(path.stat().st_size for path in files),
            "modified_ns": latest_change(files),
            "config": config_digest(folder) if entry.config else "",
        }
        if all(getattr(entry, name) == value for name, value in facts.items()):
            return entry
        facts["sha256"] = {path.name: digest(path) for path in files}
    except (CheckpointError, RunError, OSError):
        return entry  # reading the step names the cause
    return entry.model_copy(update=facts)


def tell_replaced(run: Run, steps: Sequence[int]) -> None:
    """Warn that checkpoints of an adopted run were replaced since they were adopted."""
    if steps:
        logger.warning(
            "%s: the checkpoint%s of step %s changed since it was adopted. Its points are "
            "measured again; earlier scores are of other weights, and are kept but not used.",
            run.path, "s" if len(steps) > 1 else "", ", ".join(map(str, steps)),
        )  # fmt: skip
