"""What the checks share: the device, models and runs of random weights, and their figures."""

from __future__ import annotations

import gc
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, OFTConfig

from backtrack.run.directory import Run
from tests.bench.memory import Watch
from tests.bench.placement import LINEAR, Clock, adapter_run, full_run, make_model

GIB = 2**30
Method = str
"""`lora`, `oft` or `full`."""


@dataclass(frozen=True)
class Figure:
    """One number that a check found, and what it must not exceed or fall below.

    Attributes:
        what: What was counted or measured.
        value: The number.
        at_most: Highest value allowed; None if there is no such limit.
        at_least: Lowest value allowed; None if there is no such limit.
        is_exact: It says whether results are right, on any device; else it is a time or a peak,
            which a limit binds on a GPU only.
    """

    what: str
    value: float
    at_most: float | None = None
    at_least: float | None = None
    is_exact: bool = False

    @property
    def is_met(self) -> bool:
        is_low_enough = self.at_most is None or self.value <= self.at_most
        return is_low_enough and (self.at_least is None or self.value >= self.at_least)

    @property
    def limit(self) -> str:
        low = None if self.at_least is None else f">= {self.at_least:g}"
        return low or ("" if self.at_most is None else f"<= {self.at_most:g}")


def differences(what: str, number: int) -> Figure:
    """How often results differed that must not differ."""
    return Figure(what, number, at_most=0, is_exact=True)


class SkippedCheckError(Exception):
    """A check cannot be made on this machine; the text says why."""


@dataclass(frozen=True)
class Scale:
    """Sizes of models and numbers of rounds.

    Attributes:
        medium: Shape of the model whose speed is measured.
        large: Shape of the model whose peaks are measured.
        num_rounds: Rounds of the stress checks.
        num_tokens: Tokens of a prompt.
    """

    medium: Namespace
    large: Namespace
    num_rounds: int
    num_tokens: int


def _shape(layers: int, width: int, vocabulary: int) -> Namespace:
    return Namespace(layers=layers, width=width, vocabulary=vocabulary, dtype="bfloat16")


FULL = Scale(_shape(8, 2048, 32_000), _shape(32, 4096, 32_000), num_rounds=200, num_tokens=96)
"""1.1 GB, and 7B parameters in 13.5 GB."""
TOY = Scale(_shape(2, 128, 100), _shape(2, 128, 100), num_rounds=3, num_tokens=12)
CONFIGS: dict[Method, Any] = {
    "lora": lambda: LoraConfig(task_type="CAUSAL_LM", r=16, target_modules=LINEAR),
    "oft": lambda: OFTConfig(task_type="CAUSAL_LM", oft_block_size=32, target_modules=LINEAR),
}


@dataclass
class Models:
    """A base of random weights and runs of it, each made when it is first asked for."""

    folder: Path
    shape: Namespace
    _runs: dict[Method, Run] = field(default_factory=dict)

    @cached_property
    def base(self) -> Path:
        return make_model(self.folder / "base", self.shape)

    @cached_property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.base.glob("*.safetensors"))

    def run(self, method: Method) -> Run:
        if method not in self._runs:
            path = self.folder / method
            if method == "full":
                self._runs[method] = full_run(path, self.base)
            else:
                self._runs[method] = adapter_run(path, self.base, CONFIGS[method](), "cpu")
        return self._runs[method]


class Session:
    """The device that is checked, and the models that it is checked with.

    Attributes:
        device: A torch device.
        scale: Sizes and numbers of rounds.
        folder: For what a check writes.
        medium, large: Models of the scale's shapes.
        clock: Measures time, the device's work included.
    """

    def __init__(self, device: str, scale: Scale, folder: Path) -> None:
        self.device, self.scale, self.folder = torch.device(device), scale, folder
        on_device = {"device": device}
        self.medium = Models(folder / "medium", Namespace(**vars(scale.medium), **on_device))
        self.large = Models(folder / "large", Namespace(**vars(scale.large), **on_device))
        self.clock = Clock(device)

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def require_gpu(self, number: int = 1) -> None:
        """Skip the check unless there are so many GPUs."""
        found = torch.cuda.device_count() if self.is_gpu else 0
        if found < number:
            raise SkippedCheckError(f"{found} GPUs, needs {number}")

    def peak(self, work: Callable[[], object]) -> int:
        """Bytes by which memory rises at most while the work is done; what it returns is freed."""
        self.clean()
        if not self.is_gpu:
            with Watch() as watch:
                kept = work()
                rise = watch.peak()
            del kept
            return rise
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        kept = work()
        torch.cuda.synchronize(self.device)
        del kept
        return torch.cuda.max_memory_allocated(self.device) - before

    def clean(self) -> None:
        """Free what nobody refers to, on the device too."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()
