"""Chains of coded checkpoints: read, write, recode and delete steps.

A chain begins with a key frame and has at most `key_every` files; each further step is coded
against the one before it. Promised: while steps are deleted, replaced or recoded, every other step
stays readable at any moment.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from backtrack.errors import CheckpointError, PointError
from backtrack.records.adapter_config import ADAPTER_CONFIG
from backtrack.run.bits import write_safetensors
from backtrack.run.checkpoint_writer import (
    config_digest,
    digest_once,
    remove_folders,
    write_checkpoint,
)
from backtrack.run.codec import CODED_FILE, decode, encode, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backtrack.run.bits import Bits
    from backtrack.run.codec import CodedFile
    from backtrack.run.directory import Run

KEY_EVERY = 8
logger = logging.getLogger(__name__)


def verified_folder(run: Run, step: int) -> Path:
    """The folder of a checkpoint, after checking its files against the index.

    Raises:
        CheckpointError: A file is missing or its digest differs, or an adapter's configuration is
            another.
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
    if entry.config and config_digest(folder) != entry.config:
        raise CheckpointError(
            f"step {step}: {folder / ADAPTER_CONFIG} was changed after the step was saved, in "
            "fields that decide the model, such as lora_alpha. Restore it, or choose another step."
        )
    return folder


def chain_steps(run: Run, step: int) -> tuple[int, ...]:
    """The steps needed to decode a step: a key frame first, the step itself last.

    Raises:
        CheckpointError: A step of the chain is not in the run.
    """
    steps = [step]
    try:
        while (reference := run.entry(steps[0]).reference) is not None:
            steps.insert(0, reference)
        run.entry(steps[0])
    except PointError as error:
        raise CheckpointError(
            f"step {step} is coded against step {steps[0]}, which is not in the run. {error} "
            "Choose a step before it, or one from the next key frame on."
        ) from error
    return tuple(steps)


def read_bits(run: Run, step: int) -> dict[str, Bits]:
    """Decode a coded checkpoint.

    Raises:
        CheckpointError: A file of its chain is missing, truncated or damaged.
    """
    steps = chain_steps(run, step)
    logger.debug("decoding step %d through %s", step, steps)
    files: list[CodedFile] = []
    for link in steps:
        try:
            files.append(read_table(verified_folder(run, link) / CODED_FILE))
        except CheckpointError as error:
            if link == step:
                raise
            raise CheckpointError(f"step {step} is coded against step {link}: {error}") from error
    return decode(files)


def dependent(run: Run, step: int) -> int | None:
    """The step coded against this one, if any."""
    return next((entry.step for entry in run.entries() if entry.reference == step), None)


def write_coded(
    folder: Path,
    tensors: Mapping[str, Bits],
    reference: tuple[int, Mapping[str, Bits]] | None,
    files: Mapping[str, bytes],
) -> None:
    """Write a coded checkpoint and the small files beside it into a folder.

    Args:
        folder: An empty folder.
        tensors: The weights, by name.
        reference: Step to code against, and its weights; None writes a key frame.
        files: Contents of the other files, by name.
    """
    old_step, old = reference or (None, None)
    encode(folder / CODED_FILE, tensors, reference=old, reference_step=old_step)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_plain(folder: Path, tensors: Mapping[str, Bits], files: Mapping[str, bytes]) -> None:
    """Write a folder that stock PEFT or transformers loads."""
    name = "adapter_model" if "adapter_config.json" in files else "model"
    write_safetensors(folder / f"{name}.safetensors", tensors)
    for other, content in files.items():
        (folder / other).write_bytes(content)


def recode(run: Run, step: int, against: int | None) -> None:
    """Recode a step against another, or as a key frame; its decoded weights stay the same."""
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


def drop_checkpoint(run: Run, step: int, *, key_every: int = KEY_EVERY) -> None:
    """Delete a step from the run, after recoding the step that is coded against it.

    The next step is recoded against the previous one if the chain stays short enough, so that key
    frames do not pile up, and else as a key frame. If it cannot be read, a warning names it.
    """
    successor = next((other for other in run.steps if other > step), None)
    if successor is not None and run.entry(successor).storage == "coded":
        try:
            before = _reference_for_successor(run, step, successor, key_every)
            if before is not None or run.entry(successor).reference == step:
                recode(run, successor, before)
        except CheckpointError as error:
            logger.warning("step %d is deleted although %s", step, error)
    run.drop_entry(step)
    remove_folders(run, step)


def _reference_for_successor(run: Run, step: int, successor: int, key_every: int) -> int | None:
    """The previous step, if the chain from `successor` on can continue its chain."""
    older = [other for other in run.steps if other < step]
    if not older or run.entry(older[-1]).storage != "coded":
        return None
    length = len(chain_steps(run, older[-1])) + 1
    last = successor
    while (following := dependent(run, last)) is not None:
        length, last = length + 1, following
    return older[-1] if length <= key_every else None
