"""Tensors as unsigned integers, and a safetensors writer for them.

The `safetensors` library holds the GIL while it writes, which would stop a training in the same
process. So files are written here (a JSON table, then the bytes) through `write`, which releases
the GIL. Reading is left to the library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes per value, by safetensors' name of the dtype."""
_UNSIGNED: dict[int, type[np.unsignedinteger[Any]]] = {
    1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64,
}  # fmt: skip
TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip
"""Torch's name of a dtype, by safetensors' name."""
_SAFETENSORS_NAMES = {name: key for key, name in TORCH_NAMES.items()}


class Header(NamedTuple):
    """What is known of a stored tensor without reading its values.

    Attributes:
        shape: Shape of the tensor.
        dtype: Safetensors' name of its dtype, such as `BF16` or `F32`.
    """

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Bits:
    """The bit patterns of a tensor's values, as unsigned integers of the same width.

    Attributes:
        dtype: Safetensors' name of the tensor's dtype, such as `BF16` or `F32`.
        shape: Shape of the tensor.
        values: `[numel]`, unsigned integers as wide as the dtype.
    """

    dtype: str
    shape: tuple[int, ...]
    values: NDArray[np.unsignedinteger[Any]]

    @property
    def num_bytes(self) -> int:
        return int(self.values.nbytes)


def unsigned(dtype: str) -> np.dtype[np.unsignedinteger[Any]]:
    """The unsigned integer dtype as wide as a safetensors dtype."""
    return np.dtype(_UNSIGNED[ITEM_BYTES[dtype]])


def bits_of(tensor: Tensor) -> Bits:
    """The bits of a CPU tensor, sharing its memory if it is contiguous."""
    import torch

    dtype = _SAFETENSORS_NAMES[str(tensor.dtype).removeprefix("torch.")]
    octets = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return Bits(dtype, tuple(tensor.shape), octets.view(unsigned(dtype)))


def tensor_of(bits: Bits) -> Tensor:
    """The tensor of the bits, sharing their memory."""
    import torch

    octets = torch.from_numpy(bits.values.view(np.uint8))
    kind: torch.dtype = getattr(torch, TORCH_NAMES[bits.dtype])
    return octets.view(kind).reshape(bits.shape)


def write_safetensors(path: Path, tensors: Mapping[str, Bits]) -> None:
    """Write a plain safetensors file; wide dtypes first, then by name, as the library does."""
    order = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name in order:
        bits = tensors[name]
        end = begin + bits.num_bytes
        table[name] = {
            "dtype": bits.dtype, "shape": list(bits.shape), "data_offsets": [begin, end],
        }  # fmt: skip
        begin = end
    with path.open("wb") as file:
        file.write(header(table))
        for name in order:
            file.write(tensors[name].values.data)


def header(table: Mapping[str, Any], *, num_bytes: int = 0) -> bytes:
    """The head of a safetensors file: length, table, and spaces up to `num_bytes`, 8-aligned."""
    text = json.dumps(table, separators=(",", ":")).encode()
    length = max(len(text), num_bytes - 8)
    length += -length % 8
    return length.to_bytes(8, "little") + text.ljust(length)
