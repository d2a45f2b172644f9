"""Read the weights of checkpoints and bases, checked and without unpickling.

Promised: returned weights are complete (digests agree with the index) and finite.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from backtrack.errors import CheckpointError, RunError
from backtrack.formatting import command
from backtrack.records.record import short_digest
from backtrack.run.bits import TORCH_NAMES, Header, tensor_of
from backtrack.run.checkpoint_writer import weight_files
from backtrack.run.codec import CODED_FILE
from backtrack.run.coded_chain import read_bits, verified_folder
from backtrack.run.files import read_record, state_folder, write_atomically
from backtrack.run.foreign.formats import plain_names, read_foreign

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from backtrack.records import BaseModelReference
    from backtrack.run.directory import Run

_SETTLED_NS = 2_000_000_000
"""A file written later than this may be written again without another time."""
_VOCABULARIES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken")
"""Patterns of tokenizer files on the Hub that are not JSON."""


def read_checkpoint(run: Run, step: int) -> dict[str, Tensor]:
    """Every tensor of a run's checkpoint, on the CPU, by the name that stock libraries use.

    All storage forms are read through this function: plain, coded, and other trainers' formats.

    Raises:
        CheckpointError: Missing, truncated, replaced or damaged files, or a value that is not
            finite.
    """
    entry = run.entry(step)
    match entry.storage:
        case "plain":
            return read_tensors(verified_folder(run, step))
        case "coded":
            bits = read_bits(run, step)
        case _:
            verified_folder(run, step)
            names = shapes(base_folder(run.base))
            bits = read_foreign(entry.storage, Path(entry.source or ""), names)
    tensors = {name: tensor_of(values) for name, values in bits.items()}
    require_finite(tensors, str(run.folder(step)))
    return tensors


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files, on the CPU, by name.

    What compilers and wrappers add to the names (`_orig_mod.`, `module.`) is left out.

    Raises:
        CheckpointError: No weights, truncated files, or a value that is not finite.
    """
    if (folder / CODED_FILE).is_file():
        raise CheckpointError(
            f"{folder} is coded against other steps of its run. Read it with "
            "`backtrack.run.checkpoint_reader.read_checkpoint(run, step)`, or export the point."
        )
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with _opened(path) as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    require_finite(tensors, str(folder))
    return {plain: tensors[name] for name, plain in plain_names(tensors).items()}


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a folder's safetensors files, by the names of `read_tensors`.

    No weights are read.

    Raises:
        CheckpointError: No weights, or truncated files.
    """
    return {name: header.shape for name, header in headers(folder).items()}


def headers(folder: Path) -> dict[str, Header]:
    """Shape and dtype of every tensor in a folder's safetensors files, as `shapes`.

    Raises:
        CheckpointError: No weights, or truncated files.
    """
    found = _stored_headers(folder)
    return {plain: found[name] for name, plain in plain_names(found).items()}


def has_stock_names(folder: Path) -> bool:
    """Whether stock libraries know the tensors of a folder under the names in its files."""
    return all(name == plain for name, plain in plain_names(_stored_headers(folder)).items())


def _stored_headers(folder: Path) -> dict[str, Header]:
    result: dict[str, Header] = {}
    for path in weight_files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                result[name] = Header(tuple(tensor.get_shape()), tensor.get_dtype())
    return result


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open safetensors file; whatever is wrong with it is a `CheckpointError`."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file: {error}."
        ) from error


def stored_dtype(found: Iterable[Header]) -> str:
    """Torch's name of the dtype of most values among stored tensors."""
    num_values: Counter[str] = Counter()
    for shape, dtype in found:
        num_values[dtype] += math.prod(shape)
    return TORCH_NAMES[num_values.most_common(1)[0][0]]


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise an error if a tensor has NaN or infinity.

    Raises:
        CheckpointError: With the name of the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{where}: {name} has NaN or infinity. Training diverged before this step; "
                "adopt or choose an earlier one."
            )


def base_folder(reference: BaseModelReference) -> Path:
    """The local folder of a base: the given one, or the Hub's cache, downloaded if needed.

    Raises:
        RunError: It is neither a folder nor available from the Hub.
    """
    folder = Path(reference.model)
    if folder.is_dir():
        return folder
    if folder.is_absolute():
        raise RunError(f"there is no folder {folder}, the base. {_naming(reference)}")
    from huggingface_hub import snapshot_download

    code = ["*.py"] if reference.trust_remote_code else []
    try:
        cached = snapshot_download(
            reference.model,
            revision=reference.revision,
            allow_patterns=["*.safetensors", "*.json", "*.jinja", *_VOCABULARIES, *code],
            ignore_patterns=["*/*", "consolidated*"],
        )
    except Exception as error:  # the Hub's client raises many unrelated types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"the base {reference.model!r} is neither a local folder nor available from the Hub "
            f"({reason}). {_naming(reference)}"
        ) from error
    return Path(cached)


def _naming(reference: BaseModelReference) -> str:
    """What to do about a base that is missing, or not the right one."""
    if reference.run is None:
        return "Name the right one: `--base NAME-OR-FOLDER`."
    rebase = command("rebase", reference.run, "--base", "NAME-OR-FOLDER")
    return f"Say where the base is: {rebase}."


def fingerprint(folder: Path) -> dict[str, str]:
    """sha256 of every tensor's bytes, dtype and shape, by name.

    A file is read once: its digests are remembered in the user's state folder as long as its path,
    inode, size and times stay the same.

    Raises:
        CheckpointError: No weights, or truncated files.
    """
    result: dict[str, str] = {}
    for path in weight_files(folder):
        result |= _remembered_digests(path)
    return result


def _remembered_digests(path: Path) -> dict[str, str]:
    identity, begun = _identity(path), time.time_ns()
    memory = state_folder() / "fingerprints" / f"{short_digest(*identity)}.json"
    with suppress(RunError, OSError):
        return read_record(memory, dict[str, str])
    digests = _digests(path)
    is_settled = begun - max(identity[-2:]) > _SETTLED_NS and identity == _identity(path)
    if is_settled:
        with suppress(OSError):  # a folder that cannot be written is done without
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(memory, json.dumps(digests))
    return digests


def _identity(path: Path) -> tuple[str, int, int, int, int]:
    """What changes when a file is written again: path, inode, size, and both its times."""
    status = path.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    return str(path.resolve()), status.st_ino, status.st_size, *times


def _digests(path: Path) -> dict[str, str]:
    with _opened(path) as file, ThreadPoolExecutor() as pool:
        names = sorted(file.keys())
        hashes = pool.map(lambda name: _tensor_digest(file.get_tensor(name)), names)
        return dict(zip(names, hashes, strict=True))


def _tensor_digest(tensor: Tensor) -> str:
    hasher = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    octets: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
    hasher.update(octets)
    return hasher.hexdigest()


def verify_base(reference: BaseModelReference) -> Path:
    """The local folder of the base, after checking that the run was trained on it.

    Raises:
        RunError: A tensor differs from the fingerprint in the manifest.
    """
    folder = base_folder(reference)
    if reference.fingerprint:
        require_same_base(reference, fingerprint(folder), folder)
    return folder


def require_same_base(
    reference: BaseModelReference, found: Mapping[str, str], folder: Path
) -> None:
    """Raise an error unless a base has the recorded fingerprint.

    Args:
        reference: The run's base.
        found: The fingerprint of the base in `folder`.
        folder: Where it is.

    Raises:
        RunError: Names some of the tensors that differ.
    """
    names = sorted(reference.fingerprint.keys() | found.keys())
    differing = [name for name in names if reference.fingerprint.get(name) != found.get(name)]
    if differing:
        first = ", ".join(map(repr, differing[:3]))
        raise RunError(
            f"{folder} is not the base this run was trained on: {len(differing)} of "
            f"{len(names)} tensors differ, first {first}. {_naming(reference)}"
        )
