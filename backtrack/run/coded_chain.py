"""Coded checkpoints of a run: the chain a step is read through, and its bits.

A chain begins with a key frame and holds at most `key_every` files. Steps are given up, taken
again and coded anew without a moment in which a step that is kept cannot be read.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from backtrack.errors import CheckpointError, PointError
from backtrack.run.bits import write_safetensors
from backtrack.run.checkpoint_writer import digest_once, remove_folders, write_checkpoint
from backtrack.run.codec import CODED_FILE, decode, encode, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backtrack.run.bits import Bits
    from backtrack.run.codec import CodedFile
    from backtrack.run.directory import Run

KEY_EVERY = 8
logger = logging.getLogger(__name__)


def verified_folder(run: Run, step: int) -> Path:
    """The folder of a checkpoint whose files are as the index says.

    Raises:
        CheckpointError: A file is missing or its digest differs.
    """
    folder = run.folder(step)
    entry = run.entry(step)
    for name, expected in entry.sha256.items():
        path = (folder if entry.source is None else Path(entry.source)) / name
        if not path.is_file():
            raise CheckpointError(
                f"step {step}: {path} is missing. Restore it, or choose another step."
            )
        if digest_once(path) != expected:
            raise CheckpointError(
                f"step {step}: {path} is not the file that was saved (sha256 differs): "
                "truncated, damaged or replaced. Restore it, or choose another step."
            )
    return folder


def links(run: Run, step: int) -> tuple[int, ...]:
    """The steps that a coded step is decoded from: a key frame first, itself last.

    Raises:
        CheckpointError: One of them is not in the run.
    """
    found = [step]
    try:
        while (reference := run.entry(found[0]).reference) is not None:
            found.insert(0, reference)
        run.entry(found[0])
    except PointError as error:
        raise CheckpointError(
            f"step {step} is coded against step {found[0]}, which is not in the run. {error} "
            "Choose a step up to the one before, or from the next key frame on."
        ) from error
    return tuple(found)


def read_bits(run: Run, step: int) -> dict[str, Bits]:
    """The bits of a coded checkpoint.

    Raises:
        CheckpointError: A file of its chain is missing, truncated or damaged.
    """
    logger.debug("decoding step %d through %s", step, links(run, step))
    files: list[CodedFile] = []
    for link in links(run, step):
        try:
            files.append(read_table(verified_folder(run, link) / CODED_FILE))
        except CheckpointError as error:
            if link == step:
                raise
            raise CheckpointError(f"step {step} is coded against step {link}: {error}") from error
    return decode(files)


def dependent(run: Run, step: int) -> int | None:
    """The step that is coded against this one, if one is."""
    return next((entry.step for entry in run.entries() if entry.reference == step), None)


def write_coded(
    folder: Path,
    tensors: Mapping[str, Bits],
    reference: tuple[int, Mapping[str, Bits]] | None,
    files: Mapping[str, bytes],
) -> None:
    """Fill a folder with a coded checkpoint and the small files beside it.

    Args:
        folder: An empty folder.
        tensors: What to keep.
        reference: The step to code against, and its bits; none makes a key frame.
        files: Contents of the other files, by name.
    """
    old_step, old = reference or (None, None)
    encode(folder / CODED_FILE, tensors, reference=old, reference_step=old_step)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_plain(folder: Path, tensors: Mapping[str, Bits], files: Mapping[str, bytes]) -> None:
    """Fill a folder that stock PEFT or transformers loads."""
    name = "adapter_model" if "adapter_config.json" in files else "model"
    write_safetensors(folder / f"{name}.safetensors", tensors)
    for other, content in files.items():
        (folder / other).write_bytes(content)


def code_again(run: Run, step: int, against: int | None) -> None:
    """Code a step anew, against another or as a key frame; what it decodes to stays the same."""
    entry = run.entry(step)
    folder = run.folder(step)
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != CODED_FILE}
    reference = None if against is None else (against, read_bits(run, against))
    tensors = read_bits(run, step)
    write_checkpoint(
        run,
        step,
        lambda partial: write_coded(partial, tensors, reference, files),
        train_loss=entry.train_loss,
        distance=entry.distance,
    )


def give_up(run: Run, step: int, *, key_every: int = KEY_EVERY) -> None:
    """Take a step out of the run; the step coded against it is coded anew first.

    The next step is coded against the one before where the chain stays short enough, so that key
    frames do not pile up, else as a key frame. One that cannot be read any more is named.
    """
    heir = next((other for other in run.steps if other > step), None)
    if heir is not None and run.entry(heir).storage == "coded":
        try:
            before = _room_before(run, step, heir, key_every)
            if before is not None or run.entry(heir).reference == step:
                code_again(run, heir, before)
        except CheckpointError as error:
            logger.warning("step %d goes, and %s", step, error)
    run.drop_entry(step)
    remove_folders(run, step)


def _room_before(run: Run, step: int, heir: int, key_every: int) -> int | None:
    """The step before, if the chain that `heir` begins can hang on it."""
    older = [other for other in run.steps if other < step]
    if not older or run.entry(older[-1]).storage != "coded":
        return None
    length = len(links(run, older[-1])) + 1
    last = heir
    while (following := dependent(run, last)) is not None:
        length, last = length + 1, following
    return older[-1] if length <= key_every else None
