"""Read files of `torch.save` as data, without unpickling.

A pickle is a program: unpickling imports what it names and calls it. Torch's distributed
checkpoints and DeepSpeed's exist in no other form, so their programs are parsed here and never
run: `pickletools.genops` yields the instructions; containers and numbers are built from them; a
global becomes a `Name`, a call becomes a `Call`. Nothing is imported and no method is called. Only
a short list of calls is then understood as a tensor; any other in place of a tensor is an error.

NOTE: torch's own `weights_only` loader (torch 2.13) was tried instead. It refuses `.metadata` of
distributed checkpoints (a bare pickle with instructions it does not know) and DeepSpeed's
optimizer states (4 of 4, for their globals), in which ZeRO-3 keeps the weights; it reads
DeepSpeed's model states, and verl's shards only after importing `torch.distributed.tensor`. Where
it reads a file, it makes every tensor to learn one shape.

Promised: parsing takes time and memory in proportion to the file. Values of a pickle can be nested
without end, or be the same one again and again (90 bytes describe 2^40 numbers), so they are never
hashed, compared or printed before `count`, `counts` or `text` have checked what they are.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from backtrack.errors import CheckpointError
from backtrack.run.bits import Bits, Header, unsigned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_STORAGES = {
    "FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "Float8_e4m3fnStorage": "F8_E4M3",
    "Float8_e5m2Storage": "F8_E5M2",
}  # fmt: skip
_MAX_INSTRUCTIONS = 50_000_000
_MARK = object()


@dataclass(frozen=True)
class Name:
    """A global that unpickling would have imported."""

    path: str


@dataclass(eq=False)
class Call:
    """A call or an object that unpickling would have made.

    Attributes:
        of: What would have been called, usually a `Name`.
        args: Its arguments.
        state: The state that would have been set on the result.
        items: Items that would have been set in the result, as in a dict.
        members: Items that would have been appended to the result, as to a list.
    """

    of: object
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    members: list[Any] = field(default_factory=list)

    @property
    def path(self) -> str:
        return self.of.path if isinstance(self.of, Name) else ""


@dataclass(frozen=True)
class Outside:
    """A persistent id: a reference to a tensor's bytes outside the pickle."""

    key: tuple[Any, ...]


def parse(program: bytes, where: str) -> Any:
    """Parse a pickle; its globals and calls are returned as `Name` and `Call`.

    Raises:
        CheckpointError: The pickle is truncated, or has instructions that torch does not write.
    """
    reader = _Reader()
    try:
        for opcode, argument, _ in islice(pickletools.genops(program), _MAX_INSTRUCTIONS):
            if opcode.name == "STOP":
                return reader.pop(1)[0]
            reader.take(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{where} is damaged or was not written by torch: {error}."
        ) from error
    raise CheckpointError(
        f"{where} is truncated, or longer than {_MAX_INSTRUCTIONS} instructions."
    )


class Archive:
    """A file of `torch.save`: a zip of one pickle and the bytes of its tensors."""

    def __init__(self, source: Path | bytes, where: str) -> None:
        """Open a file, or the bytes of one; `where` names it in errors.

        Raises:
            CheckpointError: Damaged, or in torch's old format, which is one bare pickle.
        """
        self._where = where
        try:
            self._zip = zipfile.ZipFile(
                io.BytesIO(source) if isinstance(source, bytes) else source
            )
            program = next(n for n in self._zip.namelist() if n.endswith("data.pkl"))
            self._folder = program.removesuffix("data.pkl")
            self._require_little_endian()
            self.content = parse(self._read(program), where)
        except (OSError, zipfile.BadZipFile, StopIteration, RuntimeError) as error:
            raise CheckpointError(
                f"{where} is damaged, or a bare pickle of an old torch, which is never read. "
                "Convert it where it was made: `safetensors.torch.save_file(state, FILE)`."
            ) from error

    def _require_little_endian(self) -> None:
        name = f"{self._folder}byteorder"
        if name in self._zip.namelist() and self._read(name) != b"little":
            raise CheckpointError(f"{self._where} was written on a big-endian machine.")

    def _read(self, name: str) -> bytes:
        """Read a member. Torch compresses none, so that a small file cannot become a large one."""
        if self._zip.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{self._where}: {name} is compressed, which torch never does.")
        return self._zip.read(name)

    def tensor(self, value: object) -> Bits:
        """The tensor that a parsed call describes.

        Raises:
            CheckpointError: The value is not a tensor, or its bytes are missing.
        """
        storage, offset, size, stride, dtype = _tensor_facts(value, self._where)
        key = text(storage[2])
        try:
            octets = self._read(f"{self._folder}data/{key}")
        except (KeyError, zipfile.BadZipFile, OSError) as error:
            raise CheckpointError(f"{self._where}: the bytes of a tensor are damaged.") from error
        kind = unsigned(dtype)
        whole = np.frombuffer(octets[: len(octets) // kind.itemsize * kind.itemsize], kind)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if prod(size) and not (0 <= offset <= last < whole.size >= prod(size)):
            raise CheckpointError(f"{self._where}: a tensor extends past its bytes.")
        if not prod(size):
            return Bits(dtype, size, np.empty(0, kind))
        view = np.lib.stride_tricks.as_strided(
            whole[offset:], size, [s * kind.itemsize for s in stride], writeable=False
        )
        return Bits(dtype, size, np.array(view).reshape(-1))


def tensor_header(value: object, where: str) -> Header:
    """Shape and dtype of the tensor that a parsed call describes.

    Raises:
        CheckpointError: The value is not a tensor.
    """
    _, _, size, _, dtype = _tensor_facts(value, where)
    return Header(size, dtype)


def _tensor_facts(
    value: object, where: str
) -> tuple[tuple[Any, ...], int, tuple[int, ...], tuple[int, ...], str]:
    """Storage, offset, size, stride and dtype of the tensor that a parsed call describes."""
    if isinstance(value, Call):
        match value.path, value.args:
            case ("torch._utils._rebuild_parameter", (data, *_)):
                return _tensor_facts(data, where)
            case "torch._tensor._rebuild_from_type_v2", (
                Name(path=path), Name(), tuple() as args, *_,
            ):  # fmt: skip
                return _tensor_facts(Call(Name(path), args), where)
            case "torch._utils._rebuild_tensor_v2", (Outside(key=key), offset, size, stride, *_):
                kind = key[1].path.rpartition(".")[2] if isinstance(key[1], Name) else ""
                if kind in _STORAGES and _are_counts(offset, *size, *stride):
                    return key, offset, tuple(size), tuple(stride), _STORAGES[kind]
    what = value.path or "a call" if isinstance(value, Call) else type(value).__name__
    raise CheckpointError(
        f"{where}: {what} is in place of a tensor. It is not read, since reading it would mean "
        "running it; save the weights as safetensors where they were made."
    )


def count(value: object) -> int:
    """The value, if it is a number of things.

    Raises:
        ValueError: It is not.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"{type(value).__name__} in place of a number of things")
    return value


def counts(value: object) -> tuple[int, ...]:
    """The members of a list, tuple or `torch.Size`, each a `count`.

    Raises:
        ValueError: One is not.
    """
    return tuple(count(member) for member in sequence(value))


def text(value: object) -> str:
    """The value, if it is text.

    Raises:
        ValueError: It is not.
    """
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} in place of text")  # noqa: TRY004  # damage
    return value


def _are_counts(*numbers: object) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)


def attributes(value: object) -> Mapping[str, Any]:
    """The attributes that a parsed object would have had."""
    state = value.state if isinstance(value, Call) else None
    if isinstance(state, tuple) and len(state) == 2:  # plain attributes and slots
        state = {**(state[0] or {}), **(state[1] or {})}
    return state if isinstance(state, dict) else {}


def mapping(value: object) -> Mapping[Any, Any]:
    """A dict, or the items of a parsed dict subclass."""
    if isinstance(value, dict):
        return value
    return value.items if isinstance(value, Call) else {}


def sequence(value: object) -> tuple[Any, ...]:
    """A list or tuple, or the members of a parsed subclass such as `torch.Size`."""
    if isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(value, Call) and value.args and isinstance(value.args[0], list | tuple):
        return tuple(value.args[0])
    return tuple(value.members) if isinstance(value, Call) else ()


class _Reader:
    """The stack machine of a pickle, holding plain data, `Name`, `Call` and `Outside` only."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def take(self, name: str, argument: Any) -> None:
        """Apply one instruction."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in _ACTIONS:
            _ACTIONS[name](self)
        elif name in {"BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"}:
            self._memo[len(self._memo) if argument is None else argument] = self.stack[-1]
        elif name in {"BINGET", "LONG_BINGET", "GET"}:
            self.stack.append(self._memo[argument])
        elif name == "GLOBAL":
            self.stack.append(Name(argument.replace(" ", ".")))
        elif name not in {"PROTO", "FRAME"}:
            raise ValueError(f"instruction {name}")

    def since_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("an instruction lacks its operands")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def name(self) -> None:
        module, name = map(text, self.pop(2))
        self.stack.append(Name(f"{module}.{name}"))

    def call(self) -> None:
        of, args = self.pop(2)
        self.stack.append(Call(of, tuple(args) if isinstance(args, list | tuple) else (args,)))

    def call_by_key(self) -> None:
        of, args, _ = self.pop(3)
        self.stack.append(Call(of, tuple(args)))

    def build(self) -> None:
        target, state = self.pop(2)
        if isinstance(target, Call):
            target.state = state
        self.stack.append(target)

    def outside(self) -> None:
        (key,) = self.pop(1)
        self.stack.append(Outside(tuple(key)))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        (target.members if isinstance(target, Call) else target).extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        mapped = target.items if isinstance(target, Call) else target
        if not isinstance(mapped, dict):
            raise TypeError("items are set in something that is not a dict")
        mapped.update({_key(k): v for k, v in zip(items[::2], items[1::2], strict=True)})

    def add(self) -> None:
        items = self.since_mark()
        self.stack[-1].extend(items)


def _key(key: object) -> Any:
    """A key of a dict; one of a type that no reader looks up is replaced by an object.

    Hashing nested tuples overflows the interpreter's stack.
    """
    return key if isinstance(key, str | int | float | bytes | Name | Call | None) else object()


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "MARK": lambda: _MARK,
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list,
}  # fmt: skip
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_ACTIONS: dict[str, Callable[[_Reader], None]] = {
    "POP": lambda r: r.pop(1).clear(),
    "POP_MARK": lambda r: r.since_mark().clear(),
    "DUP": lambda r: r.stack.append(r.stack[-1]),
    "TUPLE": lambda r: r.stack.append(tuple(r.since_mark())),
    "TUPLE1": lambda r: r.stack.append(tuple(r.pop(1))),
    "TUPLE2": lambda r: r.stack.append(tuple(r.pop(2))),
    "TUPLE3": lambda r: r.stack.append(tuple(r.pop(3))),
    "LIST": lambda r: r.stack.append(r.since_mark()),
    "FROZENSET": lambda r: r.stack.append(tuple(r.since_mark())),
    "DICT": lambda r: r.stack.append(dict(_pairs(r.since_mark()))),
    "APPEND": lambda r: r.append(r.pop(1)),
    "APPENDS": lambda r: r.append(r.since_mark()),
    "ADDITEMS": _Reader.add,
    "SETITEM": lambda r: r.set_items(r.pop(2)),
    "SETITEMS": lambda r: r.set_items(r.since_mark()),
    "STACK_GLOBAL": _Reader.name,
    "REDUCE": _Reader.call,
    "NEWOBJ": _Reader.call,
    "NEWOBJ_EX": _Reader.call_by_key,
    "BUILD": _Reader.build,
    "BINPERSID": _Reader.outside,
}


def _pairs(items: list[Any]) -> zip[tuple[Any, Any]]:
    return zip((_key(key) for key in items[::2]), items[1::2], strict=True)
