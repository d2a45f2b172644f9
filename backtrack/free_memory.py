"""Memory that is free on a device, as this process may use it: within its container's limit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADROOM = 1.1
"""Free memory required, as a multiple of the bytes to be stored."""

_GROUPS = Path("/sys/fs/cgroup")
"""Where control groups are mounted: version 2 at the root, version 1 below `memory`."""
_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Limit, usage and the field of `memory.stat` that counts what is dropped first, by version."""


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken: of a GPU, or of this machine within its container's limit.

    On a GPU, what torch holds in reserve counts as free.
    """
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserved
    return min([int(psutil.virtual_memory().available), *_room_in_groups()])


def total_host_bytes() -> int:
    """Memory of this machine, or of the container that this process runs in."""
    limits = (limit for limit, _ in _limits())
    return min([int(psutil.virtual_memory().total), *limits])


def _room_in_groups() -> Iterator[int]:
    for limit, used in _limits():
        yield max(limit - used, 0)


def _limits() -> Iterator[tuple[int, int]]:
    """Limit and usage of each control group around this process that has a limit, in bytes."""
    for version, names in _FILES.items():
        for folder in _own_groups(version):
            try:
                limit, used = ((folder / name).read_text(encoding="ascii") for name in names[:2])
                stat = (folder / "memory.stat").read_text(encoding="ascii")
            except OSError:
                continue
            if limit.strip() != "max":
                fields = dict(line.split() for line in stat.splitlines())
                yield int(limit), int(used) - int(fields.get(names[2], 0))


def _own_groups(version: str) -> Iterator[Path]:
    """Folders of this process's control group and those around it, the innermost first."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if version == controllers:
            group = Path(path.lstrip("/"))
            yield from (_GROUPS / version / part for part in (group, *group.parents))
