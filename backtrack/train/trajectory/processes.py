"""The processes of one training: all wait for the main one while it writes, however long it takes.

A collective gives up after some minutes, and the main process may hash or write a base of a
hundred GB in between. So they wait, before the next collective, in a group that has patience.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

_PATIENCE = timedelta(days=1)


class Processes:
    """Every process of a training, or this one alone; all must do the same with it."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group

    @classmethod
    def of_training(cls) -> Processes:
        """All that torch.distributed knows; each of them must call this."""
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls(dist.new_group(backend="gloo", timeout=_PATIENCE))

    def wait(self) -> None:
        """Wait until every process is here."""
        if self._group is not None:
            dist.barrier(self._group)

    def from_main(self, *, is_so: bool) -> bool:
        """What the main process says; the others' own opinion does not count."""
        if self._group is None:
            return is_so
        said = torch.tensor(is_so)
        dist.broadcast(said, src=0, group=self._group)
        return bool(said)
