"""Read whole-model checkpoints in other trainers' formats, recognized by their files.

| format | written by | files read |
|---|---|---|
| `dcp` | torch's distributed checkpoint: FSDP through accelerate | `.metadata`, `*.distcp` |
| `zero` | DeepSpeed ZeRO 1 to 3 | `*_model_states.pt`; in stage 3 also `*_optim_states.pt` |
| `shards` | verl: one file per process | `model_world_size_*_rank_*.pt` |

All are pickles. They are parsed as data (`inert_pickle`) and never unpickled. Whole models only:
tensor names must be the base's, under one common prefix. Optimizer states are ignored. ZeRO-3's
fp32 weights are rounded to the 16-bit dtype named in its configuration.
"""

from __future__ import annotations

import mmap
import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from backtrack.errors import CheckpointError
from backtrack.run.bits import Bits, Header, bits_of, tensor_of, unsigned
from backtrack.run.foreign.inert_pickle import (
    Archive,
    Call,
    attributes,
    count,
    counts,
    mapping,
    parse,
    sequence,
    tensor_header,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from backtrack.records import Storage

    _Part = tuple[Mapping[str, Any], Mapping[str, Any]]

Headers = dict[str, Header]
Shapes = dict[str, tuple[int, ...]]

_RANK = re.compile(r"rank_(\d+)")
_PREFIXES = ("", "model.", "module.", "state_dict.", "app.model.", "model.model.")
_WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
_DTYPES = {
    "torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16",
    "torch.float64": "F64", "torch.int64": "I64", "torch.int32": "I32", "torch.uint8": "U8",
    "torch.bool": "BOOL",
}  # fmt: skip


class _Tensors(NamedTuple):
    """The tensors of a checkpoint: their names, and a function that reads one."""

    names: Iterable[str]
    read: Callable[[str], Bits]


@dataclass(frozen=True)
class _Format:
    """How checkpoints of one format are found and read.

    Attributes:
        marks: Patterns of files that a folder of this format has, each at least once.
        files: Patterns of all files with weights.
        headers: Returns shape and dtype of each tensor, without reading weights.
        open: Returns the tensors.
    """

    marks: tuple[str, ...]
    files: tuple[str, ...]
    headers: Callable[[Path], Headers]
    open: Callable[[Path], _Tensors]


def find_weights(folder: Path) -> tuple[Storage, Path] | None:
    """The format and folder of a checkpoint's weights in another trainer's format, if any."""
    inner = sorted(p for p in folder.glob("*") if p.is_dir() and not p.name.startswith("optim"))
    for source in (folder, folder / "actor", *inner):
        for storage, form in _FORMATS.items():
            if all(any(source.glob(mark)) for mark in form.marks):
                return storage, source
    return None


def weight_files_of(storage: Storage, source: Path) -> tuple[Path, ...]:
    """The files of a format, sorted by name."""
    patterns = _FORMATS[storage].files
    return tuple(sorted(path for pattern in patterns for path in source.glob(pattern)))


def foreign_shapes(storage: Storage, source: Path, base: Iterable[str]) -> Shapes:
    """The shape of each tensor, by its name in the base; no weights are read.

    Raises:
        CheckpointError: Damaged or foreign files, or names that are not the base's.
    """
    found = foreign_headers(storage, source)
    return {short: found[name].shape for name, short in _by_base(found, base).items()}


def foreign_headers(storage: Storage, source: Path) -> Headers:
    """Shape and dtype of each tensor, by the name in the files; no weights are read.

    Raises:
        CheckpointError: Damaged or foreign files.
    """
    with _described(source):
        return _FORMATS[storage].headers(source)


def read_foreign(storage: Storage, source: Path, base: Iterable[str]) -> dict[str, Bits]:
    """Read every tensor, by its name in the base.

    Raises:
        CheckpointError: Damaged or foreign files, or names that are not the base's.
    """
    with _described(source):
        tensors = _FORMATS[storage].open(source)
        names = _by_base(tensors.names, base)
        return {short: tensors.read(name) for name, short in names.items()}


@contextmanager
def _described(source: Path) -> Iterator[None]:
    """Turn any error of parsing a malformed file into a `CheckpointError` that names it."""
    try:
        yield
    except CheckpointError:
        raise
    except (
        OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError,
        MemoryError,
    ) as error:  # fmt: skip
        raise CheckpointError(
            f"{source} is damaged, incomplete or of an unknown format: {error!r}. Convert "
            "it where it was made: `model.save_pretrained(FOLDER)`."
        ) from error


def plain_names(found: Iterable[str]) -> dict[str, str]:
    """Each stored name without what compilers and wrappers of a model add to all of its names."""
    names = {name: _WRAPPERS.sub("", name) for name in found}
    while names and all(plain.startswith("module.") for plain in names.values()):
        names = {name: plain.removeprefix("module.") for name, plain in names.items()}
    return names


def _by_base(found: Iterable[str], base: Iterable[str]) -> dict[str, str]:
    """The base's name of each stored name, with the prefix that matches most names removed."""
    expected = set(base)
    plain = plain_names(found)
    options = [
        {name: p.removeprefix(prefix) for name, p in plain.items() if p.startswith(prefix)}
        for prefix in _PREFIXES
    ]
    best = max(options, key=lambda names: len(expected & set(names.values())))
    kept = {name: short for name, short in best.items() if short in expected}
    missing = sorted(expected - set(kept.values()))
    if missing:
        if any("lora_" in name for name in plain):
            cause = (
                "It is an adapter: save it with PEFT, with adapter_config.json beside it; verl's, "
                "convert by `python -m verl.model_merger merge`."
            )
        elif kept:
            cause = "Save it again, whole; or name the base that has its layers with --base."
        else:
            cause = "It has no tensor of the base: name the base it was trained from with --base."
        raise CheckpointError(
            f"{len(missing)} of the base's {len(expected)} tensors are missing, first "
            f"{missing[0]!r}. {cause}"
        )
    return kept


@cache
def _dcp_metadata(path: Path, _changed_ns: int) -> Mapping[str, Any]:
    return attributes(parse(path.read_bytes(), str(path)))


def _metadata(source: Path) -> Mapping[str, Any]:
    path = source / ".metadata"
    return _dcp_metadata(path, path.stat().st_mtime_ns)


def _dcp_tensors(source: Path) -> dict[str, dict[str, Any]]:
    """The metadata of each tensor, by name; other objects are ignored."""
    described = mapping(_metadata(source)["state_dict_metadata"])
    return {
        text(name): dict(attributes(value))
        for name, value in described.items()
        if isinstance(value, Call) and value.path.endswith(".TensorStorageMetadata")
    }


def _dcp_header(about: Mapping[str, Any]) -> Header:
    dtype = _DTYPES[sequence(about["properties"].state)[0].path]
    return Header(counts(about["size"]), dtype)


def _dcp_read(source: Path, name: str, about: Mapping[str, Any], parts: Sequence[_Part]) -> Bits:
    size, dtype = _dcp_header(about)
    result = np.empty(size, unsigned(dtype))
    filled = 0
    for index, info in parts:
        path = source / text(info["relative_path"])
        if path.parent != source:
            raise CheckpointError(f"{source}/.metadata points outside its folder: {path}.")
        part = _dcp_part(path, info["offset"], info["length"])
        offset = counts(index.get("offset")) or (0,) * len(size)
        sizes = next(
            counts(chunk["sizes"])
            for chunk in map(attributes, about["chunks"])
            if counts(chunk["offsets"]) == offset
        )
        where = tuple(slice(o, o + n) for o, n in zip(offset, sizes, strict=True))
        result[where] = part.values.reshape(sizes)
        filled += part.values.size
    if filled != prod(size):
        raise CheckpointError(f"{source}: {name} is incomplete: {filled} of {prod(size)} values.")
    return Bits(dtype, size, result.reshape(-1))


def _dcp_parts(source: Path) -> dict[str, list[_Part]]:
    """The index and the storage information of each part, by tensor name."""
    parts: dict[str, list[_Part]] = {}
    for key, value in mapping(_metadata(source)["storage_data"]).items():
        index = attributes(key)
        parts.setdefault(text(index["fqn"]), []).append((index, attributes(value)))
    return parts


def _dcp_part(path: Path, offset: int, length: int) -> Bits:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        if offset + length > len(view):
            raise CheckpointError(f"{path} is truncated.")
        archive = Archive(view[offset : offset + length], str(path))
    return archive.tensor(archive.content)


def _zero_states(source: Path, kind: str) -> list[Archive]:
    """The files of all processes, by rank."""
    paths = sorted(source.glob(f"*_{kind}_states.pt"), key=_rank)
    return [Archive(path, str(path)) for path in paths]


def _rank(path: Path) -> int:
    match = _RANK.search(path.name)
    return int(match.group(1)) if match else 0


def _zero_headers(source: Path) -> Headers:
    content = mapping(_zero_states(source, "model")[0].content)
    groups = [*sequence(content["param_shapes"]), content.get("frozen_param_shapes") or {}]
    shapes = {text(n): counts(s) for group in groups for n, s in mapping(group).items()}
    rounded = _DTYPES[f"torch.{_training_dtype(content['ds_config'])}"]
    is_whole, module = _is_whole(content), mapping(content["module"])
    whole = {text(n): v for n, v in module.items()} if is_whole else _zero_buffers(content)
    headers = {name: tensor_header(value, str(source)) for name, value in whole.items()}
    return {name: Header(shape, rounded) for name, shape in shapes.items()} | headers


def _is_whole(content: Mapping[Any, Any]) -> bool:
    """Whether each process's file has the whole model, as in stages 1 and 2."""
    return bool(content["ds_config"]["zero_optimization"]["stage"] <= 2)


def _zero_buffers(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The parsed buffers, which are whole in every process's file, in all stages."""
    module = mapping(content["module"])
    names = map(text, sequence(content.get("buffer_names") or ()))
    return {name: module[name] for name in names if name in module}


def _zero_read(source: Path) -> dict[str, Bits]:
    files = _zero_states(source, "model")
    content = mapping(files[0].content)
    if content.get("mp_world_size", 1) != 1:
        raise CheckpointError(
            f"{source} is split by tensor parallelism, which is not read. Convert it where it was "
            "made: `model.save_pretrained(FOLDER)`."
        )
    if _is_whole(content):
        module = mapping(content["module"])
        return {text(name): files[0].tensor(value) for name, value in module.items()}
    return _joined_partitions(source, files, content)


def _joined_partitions(
    source: Path, files: list[Archive], content: Mapping[Any, Any]
) -> dict[str, Bits]:
    """The tensors of ZeRO-3, each concatenated from the processes' partitions."""
    optimizers = _zero_states(source, "optim")
    world = count(content["dp_world_size"])
    if len(optimizers) != world:
        raise CheckpointError(
            f"{source} has the partitions of {len(optimizers)} of {world} processes."
        )
    partitions = [
        [
            a.tensor(v).values
            for v in sequence(a.content["optimizer_state_dict"]["fp32_flat_groups"])
        ]
        for a in optimizers
    ]
    dtype = _training_dtype(content["ds_config"])
    tensors: dict[str, Bits] = {}
    for group, shapes in enumerate(sequence(content["param_shapes"])):
        begin = 0
        for name, size in mapping(shapes).items():
            shape = counts(size)
            length = -(-prod(shape) // len(partitions))
            parts = [partition[group][begin : begin + length] for partition in partitions]
            tensors[text(name)] = _rounded(
                Bits("F32", shape, np.concatenate(parts)[: prod(shape)]), dtype
            )
            begin += length
    buffers = {n: files[0].tensor(value) for n, value in _zero_buffers(content).items()}
    return tensors | _frozen(files, content) | buffers


def _frozen(files: list[Archive], content: Mapping[Any, Any]) -> dict[str, Bits]:
    """The frozen parameters, of which each process saves a fragment."""
    tensors = {}
    for name, size in mapping(content.get("frozen_param_shapes") or {}).items():
        parts = [
            file.tensor(mapping(mapping(file.content)["frozen_param_fragments"])[name])
            for file in files
        ]
        values = np.concatenate([part.values for part in parts])[: prod(counts(size))]
        tensors[text(name)] = Bits(parts[0].dtype, counts(size), values)
    return tensors


def _training_dtype(config: Mapping[str, Any]) -> str:
    for key, dtype in (("bf16", "bfloat16"), ("bfloat16", "bfloat16"), ("fp16", "float16")):
        if isinstance(config.get(key), dict) and config[key].get("enabled") is True:
            return dtype
    return "float32"


def _rounded(bits: Bits, dtype: str) -> Bits:
    import torch

    return bits_of(tensor_of(bits).to(getattr(torch, dtype)))


def _rank_states(source: Path) -> list[tuple[Archive, Mapping[Any, Any]]]:
    """Each process's file and its content, by rank; all must be present."""
    paths = sorted(source.glob("model_world_size_*_rank_*.pt"), key=_rank)
    world = int(paths[0].name.split("_")[3])
    if len(paths) != world:
        raise CheckpointError(f"{source} has the parts of {len(paths)} of {world} processes.")
    archives = [Archive(path, str(path)) for path in paths]
    return [(archive, mapping(archive.content)) for archive in archives]


def _shards_read(source: Path) -> dict[str, Bits]:
    states = _rank_states(source)
    return {
        text(name): _joined_parts(name, [(archive, state[name]) for archive, state in states])
        for name in states[0][1]
    }


def _joined_parts(name: str, parts: list[tuple[Archive, Any]]) -> Bits:
    """A tensor from the processes' parts, concatenated along the axis it was sharded on."""
    archive, first = parts[0]
    spec = _dtensor_spec(first)
    if spec is None:
        return archive.tensor(first)
    size, axis = _global_header(first).shape, _sharded_axis(spec)
    if axis is None:
        return archive.tensor(_local(first))
    pieces: list[Bits] = []
    for other, value in parts:
        if sum(piece.shape[axis] for piece in pieces) < size[axis]:
            pieces.append(other.tensor(_local(value)))
    joined = np.concatenate([p.values.reshape(p.shape) for p in pieces], axis)
    if joined.shape != size:
        raise CheckpointError(f"{name} is incomplete: {joined.shape} of {size}.")
    return Bits(pieces[0].dtype, size, np.ascontiguousarray(joined).reshape(-1))


def _wrapper(value: object) -> tuple[Any, ...] | None:
    """The arguments that a distributed tensor would be rebuilt from, if the value is one."""
    while isinstance(value, Call) and value.path.startswith("torch._utils._rebuild_parameter"):
        value = value.args[0]
    if isinstance(value, Call) and value.path == "torch._tensor._rebuild_from_type_v2":
        inner = value.args[0]
        if getattr(inner, "path", "") == "torch._utils._rebuild_wrapper_subclass":
            return value.args
    return None


def _dtensor_spec(value: object) -> Mapping[str, Any] | None:
    args = _wrapper(value)
    return None if args is None else attributes(args[3][1]["_spec"])


def _local(value: object) -> object:
    args = _wrapper(value)
    return value if args is None else args[3][1]["_local_tensor"]


def _global_header(value: object, where: str = "a shard") -> Header:
    args, local = _wrapper(value), tensor_header(_local(value), where)
    return local if args is None else Header(counts(args[2][2]), local.dtype)


def _sharded_axis(spec: Mapping[str, Any]) -> int | None:
    """The axis a tensor is sharded on; None if it is replicated."""
    axes = [
        count(attributes(placement)["dim"])
        for placement in sequence(spec["placements"])
        if isinstance(placement, Call) and placement.path.endswith(".Shard")
    ]
    if len(axes) > 1:
        raise CheckpointError("a tensor sharded on several axes is not read.")
    return axes[0] if axes else None


def _dcp_headers(source: Path) -> Headers:
    return {name: _dcp_header(about) for name, about in _dcp_tensors(source).items()}


def _dcp_open(source: Path) -> _Tensors:
    tensors, parts = _dcp_tensors(source), _dcp_parts(source)
    return _Tensors(
        tensors, lambda name: _dcp_read(source, name, tensors[name], parts.get(name, ()))
    )


def _zero_open(source: Path) -> _Tensors:
    found = _zero_read(source)
    return _Tensors(found, found.__getitem__)


def _shards_headers(source: Path) -> Headers:
    return {name: _global_header(value) for name, value in _rank_states(source)[0][1].items()}


def _shards_open(source: Path) -> _Tensors:
    found = _shards_read(source)
    return _Tensors(found, found.__getitem__)


_ZERO_FILES = ("*_model_states.pt", "*_optim_states.pt")
_SHARD_FILES = ("model_world_size_*_rank_*.pt",)

_FORMATS: Mapping[Storage, _Format] = {
    "dcp": _Format((".metadata", "*.distcp"), (".metadata", "*.distcp"), _dcp_headers, _dcp_open),
    "zero": _Format(_ZERO_FILES[:1], _ZERO_FILES, _zero_headers, _zero_open),
    "shards": _Format(_SHARD_FILES, _SHARD_FILES, _shards_headers, _shards_open),
}
"""A new format is a row here and its name in `records.run.Storage`."""
