"""Where the stored ends of a merged path are kept: on the device, in host memory, or in files.

`auto` takes the fastest that fits, with a tenth to spare:

    place    on a CPU                          on a GPU
    device   memory                            the GPU's memory
    pinned   memory                            page-locked host memory, copied over as needed
    mapped   a file on disk, read through the page cache, of which nothing must fit

A mapped end is a safetensors file without a name: its space is given back with the process, at any
kill. TMPDIR says on which disk it lies.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

Keep = Literal["device", "pinned", "mapped"]

SPARE = 1.1
"""Room asked for, over the bytes that are to be kept."""


def choose(num_bytes: int, device: torch.device) -> Keep:
    """The fastest place with room for so many bytes beside what is there already."""
    wanted = num_bytes * SPARE
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > wanted:
        return "device"
    if psutil.virtual_memory().available > wanted:
        return "pinned" if device.type == "cuda" else "device"
    return "mapped"


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def store(tensors: Mapping[str, Tensor], keep: Keep, device: torch.device) -> dict[str, Tensor]:
    """The same tensors where they are to be kept, sharing no memory with those given."""
    match keep:
        case "device":
            return {n: t.detach().to(device, copy=True).contiguous() for n, t in tensors.items()}
        case "pinned":
            return {n: _pin(t) for n, t in tensors.items()}
        case "mapped":
            return _map(tensors)


def _pin(tensor: Tensor) -> Tensor:
    held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=torch.cuda.is_available())
    return held.copy_(tensor.detach())


def _map(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory(prefix="backtrack-ends-") as folder:
        path = Path(folder) / "end.safetensors"
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
