"""Store the two ends of a merged path on the device, in host memory or in files.

`auto` takes the fastest storage that fits, with a tenth to spare:

    storage  on a CPU                          on a GPU
    device   memory                            the GPU's memory
    pinned   memory                            page-locked host memory, copied over as needed
    mapped   a file on disk, read through the page cache; nothing of it must fit into memory

A mapped end is a safetensors file that is unlinked once it is mapped: its disk space is freed with
the process, however that ends. TMPDIR decides on which disk it lies.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from backtrack.free_memory import HEADROOM, free_bytes
from backtrack.path.backends.pinned_memory import empty_pinned

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

EndStorage = Literal["device", "pinned", "mapped"]


def choose_storage(live: Mapping[str, Tensor], num_copies: int) -> EndStorage:
    """The fastest storage that has room for copies of tensors beside what is in memory already.

    Args:
        live: The tensors; they may be on several devices.
        num_copies: How many copies of each are to be stored.
    """
    required: Counter[torch.device] = Counter()
    for tensor in live.values():
        required[tensor.device] += int(HEADROOM * num_copies * tensor.nbytes)
    if all(free_bytes(device) > num_bytes for device, num_bytes in required.items()):
        return "device"
    is_on_gpu = any(device.type == "cuda" for device in required)
    has_room = free_bytes(torch.device("cpu")) > required.total()
    return "pinned" if is_on_gpu and has_room else "mapped"


def store_end(
    tensors: Mapping[str, Tensor], storage: EndStorage, live: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Copies of the tensors in the given storage; they share no memory with the originals.

    Args:
        tensors: The tensors, by name.
        storage: Where to store them; on the device, each on that of the live tensor of its name.
        live: The tensors of the live model, by name.
    """
    match storage:
        case "device":
            return {
                name: tensor.detach().to(live[name].device, copy=True).contiguous()
                for name, tensor in tensors.items()
            }
        case "pinned":
            return {n: empty_pinned(t.shape, t.dtype).copy_(t) for n, t in tensors.items()}
        case "mapped":
            return _map(tensors)


def move_end(
    tensors: dict[str, Tensor], storage: EndStorage, live: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Like `store_end`, but empties `tensors`: at most one of them is in memory twice."""
    if storage == "mapped":
        stored = _map(tensors)
        tensors.clear()
        return stored
    return {n: store_end({n: tensors.pop(n)}, storage, live)[n] for n in list(tensors)}


def _map(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory(prefix="backtrack-ends-") as folder:
        path = Path(folder) / "end.safetensors"
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
