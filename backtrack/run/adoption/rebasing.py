"""Record where the base of a run is now.

Promised: a base that is not the run's is refused, and then nothing is written.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from backtrack.errors import RunError
from backtrack.records.places import base_name
from backtrack.run.checkpoint_reader import (
    base_folder,
    fingerprint,
    read_checkpoint,
    require_same_base,
    shapes,
)
from backtrack.run.checkpoint_writer import is_adapter
from backtrack.run.directory import Run

if TYPE_CHECKING:
    from backtrack.records import BaseModelReference

logger = logging.getLogger(__name__)


def rebase(run: Run, base: str, revision: str | None = None) -> bool:
    """Record another name or folder of the base that a run was trained on.

    Args:
        run: The run; its manifest is replaced. Recipes of an opened run name the same base.
        base: Hub name or folder of the base.
        revision: Revision of a Hub name; the default is the recorded one of the same name.

    Returns:
        Whether the tensors were compared. A run that recorded no fingerprint has nothing to
        compare them with, except a whole model's shapes; this base's is then recorded.

    Raises:
        RunError: There is no such base, or its tensors are not those that the run recorded.
        CheckpointError: Its weights cannot be read.
    """
    old = run.manifest.base
    new = old.model_copy(update=_named(old, base, revision))
    folder = base_folder(new)
    found = fingerprint(folder)
    if old.fingerprint:
        require_same_base(run.base, found, folder)
    new = new.model_copy(update={"fingerprint": found})
    manifest = run.manifest.model_copy(update={"base": new})
    if not old.fingerprint:
        _require_shapes(Run(run.path, manifest, run.recipe), folder)
    run.write_manifest(manifest)
    logger.info("%s: base %s, was %s", run.path, new.model, old.model)
    return bool(old.fingerprint)


def _named(old: BaseModelReference, base: str, revision: str | None) -> dict[str, str | None]:
    """Model and revision of the base by its new name."""
    model = base_name(base)
    if Path(model).is_absolute():
        return {"model": model, "revision": None}
    return {"model": model, "revision": revision or (old.revision if base == old.model else None)}


def _require_shapes(run: Run, folder: Path) -> None:
    """Raise an error if a whole model's tensors have other shapes than the base's."""
    if not run.steps or is_adapter(run.folder(run.final.step)):
        return
    base, trained = shapes(folder), read_checkpoint(run, run.final.step)
    wrong = sorted(n for n in base.keys() & trained.keys() if base[n] != tuple(trained[n].shape))
    if wrong or not base.keys() & trained.keys():
        first = wrong[0] if wrong else min(trained)
        raise RunError(
            f"{folder} is not the base of {run.path}: {first!r} has shape "
            f"{tuple(trained[first].shape)} in step {run.final.step}, and {base.get(first)} in "
            "the base."
        )
