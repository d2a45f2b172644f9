"""Page-locked host memory, in exactly the bytes that are asked for.

torch's own allocator of pinned memory rounds every request up to a power of two: of a model of
15.2 GB it locks 29. Here each tensor has pages of its own, locked by CUDA where there is a GPU and
released with the tensor.
"""

from __future__ import annotations

import logging
import mmap
import sys
from typing import Any

import torch

logger = logging.getLogger(__name__)

_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def empty_pinned(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """An uninitialized tensor on the CPU, page-locked if there is a GPU.

    If the system refuses to lock the pages, the tensor is an ordinary one: copies are right, and
    slower.
    """
    num_values = shape.numel()
    if num_values == 0:
        return torch.empty(shape, dtype=dtype)
    pages = _LockedPages(-1, num_values * dtype.itemsize, flags=_PRIVATE)
    if torch.cuda.is_available():
        pages.lock()
    return torch.frombuffer(pages, dtype=dtype, count=num_values).view(shape)


class _LockedPages(mmap.mmap):
    """Anonymous pages that CUDA may have locked; a tensor over them keeps them alive."""

    _address = 0

    def lock(self) -> None:
        address = torch.frombuffer(self, dtype=torch.uint8).data_ptr()
        try:
            runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            torch.cuda.check_error(runtime.cudaHostRegister(address, len(self), 0))
        except RuntimeError as error:
            logger.warning("host memory is not page-locked, so copies are slower: %s", error)
            return
        self._address = address

    def __del__(self) -> None:
        # At the end of the process the driver releases them, and may be gone already.
        if self._address and not sys.is_finalizing():
            runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            runtime.cudaHostUnregister(self._address)
