"""Copy live tensors to host memory, holding training up for one copy only.

On a GPU the tensors are first copied on the device; training continues while a side stream moves
that copy into pinned host memory. Where the device has no room for a copy, training waits until
they are in host memory. On a CPU they are copied within host memory. Host buffers are reused, so
after the first few saves none is allocated. Sharded tensors are gathered one at a time, and only
the main process stores them.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from backtrack.free_memory import HEADROOM, free_bytes
from backtrack.path.backends.pinned_memory import empty_pinned
from backtrack.run.bits import Bits, bits_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel


class Snapshot:
    """A copy of tensors in host memory that may still be in progress.

    Attributes:
        tensors: The host buffers, by name.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        events: Sequence[torch.cuda.Event],
        finish: Callable[[Snapshot], None],
    ) -> None:
        self.tensors = tensors
        self._events = events
        self._finish = finish

    def bits(self) -> dict[str, Bits]:
        """Wait for the copy to finish and return its values."""
        for event in self._events:
            event.synchronize()
        return {name: bits_of(tensor) for name, tensor in self.tensors.items()}

    def release(self) -> None:
        """Return the buffers, to be reused for a later copy."""
        self._finish(self)


class Snapshots:
    """Copies tensors into reused host buffers."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        """Set the dtype floating-point tensors are stored in; None for their own."""
        self._dtype = dtype
        self._free: list[dict[str, Tensor]] = []
        self._lock = threading.Lock()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @torch.no_grad()
    def take(self, live: Mapping[str, Tensor]) -> Snapshot:
        """Copy tensors that are not sharded; after the return they may change."""
        buffers = self._buffers(live)
        events = []
        for device in dict.fromkeys(tensor.device for tensor in live.values()):
            names = [name for name, tensor in live.items() if tensor.device == device]
            sources, targets = [live[n] for n in names], [buffers[n] for n in names]
            if device.type == "cuda":
                events.append(self._copy_from(device, sources, targets))
            else:
                torch._foreach_copy_(targets, sources)
        return Snapshot(buffers, events, self._finish)

    @torch.no_grad()
    def gather(self, live: Mapping[str, Tensor], *, is_main: bool) -> Snapshot | None:
        """Copy sharded tensors one by one on the main process; all processes must call this."""
        buffers = self._buffers(live) if is_main else None
        for name, tensor in live.items():
            with full_tensor(tensor) as value:
                if buffers is not None:
                    buffers[name].copy_(value.detach())
        return None if buffers is None else Snapshot(buffers, (), self._finish)

    def _copy_from(
        self, device: torch.device, sources: list[Tensor], targets: list[Tensor]
    ) -> torch.cuda.Event:
        """Copy tensors of a GPU to the host, staged on the GPU if it has room for that."""
        stream = torch.cuda.current_stream(device)
        if free_bytes(device) > HEADROOM * sum(target.nbytes for target in targets):
            sources = _staged(sources, targets)
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._streams[device].wait_stream(stream)
            stream = self._streams[device]
        with torch.cuda.device(device), torch.cuda.stream(stream):
            for source, target in zip(sources, targets, strict=True):
                target.copy_(source, non_blocking=True)
                # Keep the allocator from reusing the staging memory while it is being read.
                source.record_stream(stream)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)
        return event

    def _buffers(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with self._lock:
            free = self._free.pop() if self._free else {}
        if free.keys() == live.keys() and all(
            free[n].shape == full_shape(t) for n, t in live.items()
        ):
            return free
        empty = empty_pinned if any(t.is_cuda for t in live.values()) else torch.empty
        return {
            name: empty(full_shape(tensor), dtype=self._stored_dtype(tensor))
            for name, tensor in live.items()
        }

    def _stored_dtype(self, tensor: Tensor) -> torch.dtype:
        return self._dtype if self._dtype and tensor.is_floating_point() else tensor.dtype

    def _finish(self, snapshot: Snapshot) -> None:
        with self._lock:
            self._free.append(snapshot.tensors)


def _staged(sources: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    """Copies on the same device, contiguous and in the targets' dtypes."""
    staged = [
        torch.empty_like(source, dtype=target.dtype, memory_format=torch.contiguous_format)
        for source, target in zip(sources, targets, strict=True)
    ]
    torch._foreach_copy_(staged, sources)
    return staged


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process holds only a shard of the tensor, by FSDP2 or DeepSpeed ZeRO-3."""
    return isinstance(tensor, DTensor) or getattr(tensor, "ds_id", None) is not None


def is_any_sharded(model: torch.nn.Module) -> bool:
    return any(is_sharded(tensor) for tensor in model.state_dict(keep_vars=True).values())


def full_shape(tensor: Any) -> torch.Size:
    """The shape of the whole tensor, also if DeepSpeed ZeRO-3 has left an empty one here."""
    if getattr(tensor, "ds_id", None) is not None:
        return torch.Size(tensor.ds_shape)
    shape: torch.Size = tensor.shape
    return shape


def full_tensor(tensor: Any) -> AbstractContextManager[Tensor]:
    """Gather a sharded tensor on every process; all processes must enter the context together."""
    if isinstance(tensor, DTensor):
        # Kept on the CPU between steps, it is gathered where the processes exchange tensors.
        shard: Any = tensor.to(tensor.device_mesh.device_type)
        return nullcontext(shard.full_tensor())
    if getattr(tensor, "ds_id", None) is not None:
        return _Gathered(tensor)
    return nullcontext(tensor)


def whole_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """A model's tensors by name, each in full until the next is asked for.

    If they are sharded, all processes must take them all, in step.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        with full_tensor(tensor) as value:
            yield name, value.detach()


def gather_weights(model: PreTrainedModel, *, is_main: bool) -> dict[str, Tensor] | None:
    """Gather a sharded model's tensors on the CPU of the main process; all must call this.

    Returns:
        The tensors by name; None if the model is not sharded, or this is another process.
    """
    if not is_any_sharded(model):
        return None
    gathered = {}
    for name, tensor in whole_tensors(model):
        if is_main:
            gathered[name] = tensor.cpu().clone()
    return gathered if is_main else None


class _Gathered(AbstractContextManager["Tensor"]):
    """A tensor sharded by DeepSpeed ZeRO-3, gathered within the context."""

    def __init__(self, tensor: Tensor) -> None:
        from deepspeed import zero

        self._tensor = tensor
        self._context: Any = zero.GatheredParameters([tensor])

    def __enter__(self) -> Tensor:
        self._context.__enter__()
        return self._tensor.data

    def __exit__(self, *details: object) -> None:
        self._context.__exit__(*details)
