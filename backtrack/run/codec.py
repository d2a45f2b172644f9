"""Compress whole models losslessly, each as a difference to the checkpoint before it.

Ten steps of fine-tuning change most weights by a few units in the last place or not at all. So the
bits of a tensor are taken as integers, the reference's are subtracted, the sign is folded into the
lowest bit (zigzag), and the bytes are transposed into planes, one per byte of a value, before zstd
compresses them. A key frame has no reference; its sign bit is rotated to the end, so that a
float's exponent fills one byte. Real deltas (a small Llama, learning rate 1e-5, ten steps apart)
compress to 0.15-0.17 of their size; NOTE: XOR instead of the difference gave 0.20; zstd level 3
is slower and gave nothing more.

The file is a safetensors file. Each tensor is stored under its own name as `U8`: the frames of
its chunks, one after the other. The file's metadata describe them:

    backtrack    JSON: {"codec": "zigzag-planes-zstd-1", "reference": step or null, "tensors":
                 {name: {"dtype", "shape", "delta": bool, "frames": [bytes...], "crc32": [...]}}}

A chunk is 2 MiB of a tensor; it has one frame for each byte of a value, lowest first, and one
`crc32`, of the decoded chunk, so that a wrong reference is detected as surely as a flipped bit.
Threads process chunks in parallel; numpy and zstd release the GIL.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard
from safetensors import SafetensorError, safe_open

from backtrack.errors import CheckpointError
from backtrack.records.record import short_digest
from backtrack.run.bits import ITEM_BYTES, Bits, header, unsigned
from backtrack.run.files import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import TypeVar

    from numpy.typing import NDArray

    Item = TypeVar("Item")
    Outcome = TypeVar("Outcome")

CODED_FILE = "coded.safetensors"
CODEC = "zigzag-planes-zstd-1"
CHUNK_BYTES = 1 << 21
_LEVEL = 1
_NUM_THREADS = max(1, min(8, (os.cpu_count() or 2) // 2))

Values = np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger[Any]]]


@dataclass(frozen=True)
class CodedTensor:
    """How one tensor is stored in a coded file; fields as in the file's metadata."""

    dtype: str
    shape: tuple[int, ...]
    delta: bool
    frames: tuple[int, ...]
    crc32: tuple[int, ...]


@dataclass(frozen=True)
class CodedFile:
    """The table of a coded file.

    Attributes:
        path: The file.
        reference: Step it is coded against; None for a key frame.
        tensors: How each tensor is stored, by name.
    """

    path: Path
    reference: int | None
    tensors: dict[str, CodedTensor]

    @property
    def content(self) -> str:
        """Digest of the decoded weights: the same whatever they are coded against."""
        return short_digest({n: (t.dtype, t.shape, t.crc32) for n, t in self.tensors.items()})


def encode(
    path: Path,
    tensors: Mapping[str, Bits],
    *,
    reference: Mapping[str, Bits] | None = None,
    reference_step: int | None = None,
) -> None:
    """Write tensors as a coded file.

    Args:
        path: The file; its head is written last.
        tensors: The weights, by name.
        reference: The checkpoint to code against; a tensor that it lacks, or has with another
            dtype or shape, is coded by itself. None writes a key frame.
        reference_step: Step of the reference.
    """
    olds = {name: _fitting(bits, (reference or {}).get(name)) for name, bits in tensors.items()}
    reserved = len(_table(tensors, olds, reference_step, {}))
    coded: dict[str, list[tuple[list[int], int]]] = {name: [] for name in tensors}
    tasks = (
        (name, new, old)
        for name, bits in tensors.items()
        for new, old in _chunk_pairs(bits, olds[name])
    )
    with path.open("wb") as file, ThreadPoolExecutor(_NUM_THREADS) as pool:
        file.seek(reserved)
        for (name, _, _), (frames, crc) in _in_order(pool, lambda t: _pack(t[1], t[2]), tasks):
            file.writelines(frames)
            coded[name].append(([len(frame) for frame in frames], crc))
        file.seek(0)
        file.write(_table(tensors, olds, reference_step, coded, num_bytes=reserved))


def read_table(path: Path) -> CodedFile:
    """Read the table of a coded file; no weights are decoded.

    Raises:
        CheckpointError: The file is truncated, not a coded file, or does not match its table.
    """
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("backtrack", "")
            sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        table = parse_json(text)
        tensors = {
            name: CodedTensor(
                str(t["dtype"]), tuple(t["shape"]), bool(t["delta"]),
                tuple(t["frames"]), tuple(t["crc32"]),
            )
            for name, t in table["tensors"].items()
        }  # fmt: skip
        reference = table["reference"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a coded checkpoint: {error}."
        ) from error
    if table.get("codec") != CODEC:
        raise CheckpointError(
            f"{path} has codec {table.get('codec')!r}, but this version reads {CODEC!r}. Read it "
            "with the version of backtrack that the run's manifest.json names."
        )
    for name, tensor in tensors.items():
        if not _fits(tensor, sizes.get(name)):
            raise CheckpointError(
                f"{path} is damaged: the table of {name} does not match the file."
            )
    return CodedFile(path, reference, tensors)


def decode(chain: Sequence[CodedFile]) -> dict[str, Bits]:
    """Decode the tensors of the last file of a chain that begins with a key frame.

    Each chunk is decoded through the whole chain while it is in the CPU cache.

    Raises:
        CheckpointError: A frame is damaged, or the files do not belong together.
    """
    result = {
        name: Bits(t.dtype, t.shape, np.empty(prod(t.shape), unsigned(t.dtype)))
        for name, t in chain[-1].tensors.items()
    }
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for name, bits in result.items():
            links = _links(chain, name)
            blobs = [_blob(file.path, name) for file in links]
            tasks = [
                (links, blobs, name, index, out) for index, out in enumerate(_chunks(bits.values))
            ]
            for _ in _in_order(pool, lambda task: _unpack_through(*task), tasks):
                pass
    return result


def _links(chain: Sequence[CodedFile], name: str) -> list[CodedFile]:
    """The files that one tensor is decoded from: its latest key frame and all after it."""
    links: list[CodedFile] = []
    last = chain[-1].tensors[name]
    for file in reversed(chain):
        tensor = file.tensors.get(name)
        if tensor is None or (tensor.dtype, tensor.shape) != (last.dtype, last.shape):
            break
        links.insert(0, file)
        if not tensor.delta:
            return links
    raise CheckpointError(
        f"{chain[-1].path}: {name} is coded against a checkpoint that has no such tensor. The "
        "files of this trajectory do not belong together; choose another step."
    )


def _unpack_through(
    links: Sequence[CodedFile], blobs: Sequence[NDArray[np.uint8]], name: str, index: int,
    out: Values,
) -> None:  # fmt: skip
    for file, blob in zip(links, blobs, strict=True):
        tensor = file.tensors[name]
        try:
            planes = _planes(tensor, blob, index, out)
        except zstandard.ZstdError as error:
            raise CheckpointError(f"{file.path}: {name} is damaged: {error}.") from error
        _unpack(planes, out, is_delta=tensor.delta)
    if zlib.crc32(out.data) != links[-1].tensors[name].crc32[index]:
        raise CheckpointError(
            f"{links[-1].path}: {name} does not decode to what was saved. A file of its chain was "
            f"changed: {', '.join(file.path.parent.name for file in links)}."
        )


def _planes(
    tensor: CodedTensor, blob: NDArray[np.uint8], index: int, out: Values
) -> list[NDArray[np.uint8]]:
    """The byte planes of one chunk, each as long as the chunk has values."""
    planes = []
    width = out.dtype.itemsize
    begin = sum(tensor.frames[: index * width])
    for size in tensor.frames[index * width : (index + 1) * width]:
        frame = blob[begin : begin + size].data
        # The decompressor reserves what a frame declares, whatever limit it is given.
        if zstandard.frame_content_size(frame) != out.size:
            raise zstandard.ZstdError("a chunk has the wrong size")
        plane = _contexts.decompressor.decompress(frame)
        if len(plane) != out.size:
            raise zstandard.ZstdError("a chunk has the wrong size")
        planes.append(np.frombuffer(plane, np.uint8))
        begin += size
    return planes


def _pack(new: Values, old: Values | None) -> tuple[list[bytes], int]:
    """Compress a chunk: its frames, and the checksum of what they decode to."""
    width = new.dtype.itemsize * 8
    if old is None:
        folded = (new << 1) | (new >> (width - 1))
    else:
        delta = (new - old).view(f"i{new.dtype.itemsize}")
        folded = ((delta << 1) ^ (delta >> (width - 1))).view(new.dtype)
    planes = [folded.astype(np.uint8)]
    planes += [(folded >> shift).astype(np.uint8) for shift in range(8, width, 8)]
    frames = [_contexts.compressor.compress(plane.data) for plane in planes]
    return frames, zlib.crc32(new.data)


def _unpack(planes: Sequence[NDArray[np.uint8]], out: Values, *, is_delta: bool) -> None:
    """Undo `_pack`: replace `out`, or add to it if the chunk is a difference."""
    kind, width = out.dtype.type, out.dtype.itemsize * 8
    folded = planes[0].astype(kind)
    for index, plane in enumerate(planes[1:], 1):
        folded |= plane.astype(kind) << kind(8 * index)
    if is_delta:
        out += (folded >> kind(1)) ^ (~(folded & kind(1)) + kind(1))
    else:
        np.bitwise_or(folded >> kind(1), folded << kind(width - 1), out=out)


class _Zstd(threading.local):
    """zstd contexts of one thread; they are not thread-safe."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Zstd()


def _table(
    tensors: Mapping[str, Bits],
    olds: Mapping[str, Bits | None],
    reference_step: int | None,
    coded: Mapping[str, Sequence[tuple[list[int], int]]],
    *,
    num_bytes: int = 0,
) -> bytes:
    """The head of the file; with nothing coded yet, the longest it can become."""
    described: dict[str, Any] = {}
    spans: dict[str, Any] = {}
    begin = 0
    for name, bits in tensors.items():
        widest = ([CHUNK_BYTES * 2] * ITEM_BYTES[bits.dtype], 2**32 - 1)
        chunks = coded.get(name, [widest] * -(-bits.num_bytes // CHUNK_BYTES))
        described[name] = {
            "dtype": bits.dtype, "shape": list(bits.shape), "delta": olds[name] is not None,
            "frames": [size for sizes, _ in chunks for size in sizes],
            "crc32": [crc for _, crc in chunks],
        }  # fmt: skip
        size = sum(described[name]["frames"])
        spans[name] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]}
        begin += size
    about = {"codec": CODEC, "reference": reference_step, "tensors": described}
    metadata = {"backtrack": json.dumps(about, separators=(",", ":"))}
    return header({"__metadata__": metadata, **spans}, num_bytes=num_bytes)


def _fitting(bits: Bits, old: Bits | None) -> Bits | None:
    fits = old is not None and (old.dtype, old.shape) == (bits.dtype, bits.shape)
    return old if fits else None


def _fits(tensor: CodedTensor, size: Sequence[int] | None) -> bool:
    """Whether a row of the table is consistent with itself and with the file's `size`."""
    numbers = (*tensor.shape, *tensor.frames, *tensor.crc32)
    if tensor.dtype not in ITEM_BYTES or not all(type(n) is int and n >= 0 for n in numbers):
        return False
    num_chunks = -(-prod(tensor.shape) * ITEM_BYTES[tensor.dtype] // CHUNK_BYTES)
    return (
        len(tensor.crc32) == num_chunks
        and len(tensor.frames) == num_chunks * ITEM_BYTES[tensor.dtype]
        and size is not None
        and list(size) == [sum(tensor.frames)]
    )


def _blob(path: Path, name: str) -> NDArray[np.uint8]:
    try:
        with safe_open(path, framework="np") as file:
            blob: NDArray[np.uint8] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {name} cannot be read: {error}.") from error
    return blob


def _chunks(values: Values) -> list[Values]:
    length = CHUNK_BYTES // values.dtype.itemsize
    return [values[begin : begin + length] for begin in range(0, values.size, length)]


def _chunk_pairs(bits: Bits, old: Bits | None) -> Iterator[tuple[Values, Values | None]]:
    chunks = _chunks(bits.values)
    return zip(chunks, _chunks(old.values) if old else [None] * len(chunks), strict=True)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Outcome], items: Iterable[Item]
) -> Iterator[tuple[Item, Outcome]]:
    """Yield items with their outcomes, in order, computed a few items ahead."""
    waiting: deque[tuple[Item, Any]] = deque()
    for item in items:
        waiting.append((item, _submit(pool, work, item)))
        if len(waiting) > 2 * _NUM_THREADS:
            done, future = waiting.popleft()
            yield done, future.result()
    while waiting:
        done, future = waiting.popleft()
        yield done, future.result()


def _submit(pool: ThreadPoolExecutor, work: Callable[[Item], Outcome], item: Item) -> Any:
    try:
        return pool.submit(work, item)
    except RuntimeError:
        # The interpreter is exiting and refuses tasks, but offered checkpoints must be written.
        future: Future[Outcome] = Future()
        future.set_result(work(item))
        return future
