"""Arithmetic in which equal models give equal bits, whatever the process has set for speed."""

from __future__ import annotations

import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEVICES = ("cpu", "cuda")


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute fp32 in fp32: no TF32, no bf16 inside products, no autocast."""
    known: Any = torch.backends
    backends = (known.cuda.matmul, known.cudnn.conv, known.mkldnn.matmul, known.mkldnn.conv)
    set_before = [backend.fp32_precision for backend in backends]
    with ExitStack() as stack:
        for device in _DEVICES:
            stack.enter_context(torch.autocast(device, enabled=False))
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, precision in zip(backends, set_before, strict=True):
                backend.fp32_precision = precision


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Compute in full precision, and repeat every sum in the same order where a kernel can."""
    was_on = torch.are_deterministic_algorithms_enabled()
    had_warnings_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with full_precision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that cannot, and of cuBLAS's workspace
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_on, warn_only=had_warnings_only)
