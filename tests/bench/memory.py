"""Peak memory of opening a run and of moving along its path, in copies of the base.

    python tests/bench/memory.py [--layers 4] [--width 2048] [--dtype bfloat16] [--only NAME;...]

Creates a Llama-shaped model with random weights (0.6 GB in bf16 by default) and runs of it: whole
models, LoRA r16, OFT b32. Each row is a process of its own, which opens the run, visits three
points and closes, or exports a point. Printed are, in bases above what the imports take: the
highest anonymous memory until the run is open, after that, and the highest until the end. Pages of
files, which the system drops when it needs room, are not counted.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from peft import LoraConfig, OFTConfig

from backtrack.exporter import export
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.directory import Run
from tests.bench.placement import LINEAR, adapter_run, full_run, make_model

EXPORT = "export"
"""Key of a row that exports a point instead; its value is the form."""
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "attached lora": ("lora", {"form": "attached"}),
    "attached oft": ("oft", {"form": "attached"}),
    "merged lora": ("lora", {"form": "merged"}),
    "merged oft": ("oft", {"form": "merged"}),
    "lora on the line": ("lora", {"form": "merged", "curve": "line"}),
    "oft on the line": ("oft", {"form": "merged", "curve": "line"}),
    "whole models": ("full", {}),
    "whole models, ends mapped": ("full", {"keep": "mapped"}),
    "export of an adapter": ("lora", {EXPORT: "adapter"}),
    "export of a whole model": ("full", {EXPORT: "merged"}),
}
CONFIGS = {
    "lora": LoraConfig(task_type="CAUSAL_LM", r=16, target_modules=LINEAR),
    "oft": OFTConfig(task_type="CAUSAL_LM", oft_block_size=32, target_modules=LINEAR),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--only", default="", help="rows, separated by semicolons")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base, runs = make_runs(folder, options)
        size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        print(f"base: {size / 1e9:.2f} GB in {options.dtype}")
        print(f"{'':28}{'opening':>10}{'open':>10}{'moving':>10}")
        for name in options.only.split(";") if options.only else ROWS:
            kind, given = ROWS[name]
            peaks = in_process(runs[kind], given)
            print(f"{name:28}" + "".join(f"{peak / size:10.2f}" for peak in peaks), flush=True)


def make_runs(folder: Path, options: argparse.Namespace) -> tuple[Path, dict[str, Path]]:
    """The base and a run of each kind."""
    base = make_model(folder / "base", options)
    runs = {"full": full_run(folder / "full", base).path}
    for name, config in CONFIGS.items():
        runs[name] = adapter_run(folder / name, base, config, options.device).path
    return base, runs


def in_process(run: Path, given: dict[str, Any]) -> list[int]:
    """Peaks of one row, in bytes, measured in a fresh process."""
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=measure, args=(str(run), json.dumps(given), sender)
    )
    process.start()
    peaks: list[int] = receiver.recv()
    process.join()
    return peaks


def measure(run: str, given: str, sender: Any) -> None:
    """Open a run, visit three points, and send the peaks."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    opened, options = Run.open(Path(run)), json.loads(given)
    with Watch() as watch, tempfile.TemporaryDirectory() as folder:
        if EXPORT in options:
            export(opened, Point(step=1, alpha=0.37), Path(folder), form=options[EXPORT])
            sender.send([watch.peak()] * 3)
            return
        placement = Placement(opened, **options)
        opening, stays = watch.peak(), watch.now()
        for alpha in (0.37, 1.0, 0.0):
            placement.place(Point(step=1, alpha=alpha))
        placement.distance(Point(step=1, alpha=0.5))
        sender.send([opening, stays, watch.peak()])


class Watch:
    """Samples this process's anonymous memory, in bytes above that at the start."""

    def __enter__(self) -> Watch:
        self._start = anonymous_bytes()
        self._highest, self._is_done = self._start, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done.set()
        self._thread.join()

    def now(self) -> int:
        """Memory now."""
        return anonymous_bytes() - self._start

    def peak(self) -> int:
        """Highest memory since the last call."""
        highest, self._highest = self._highest, anonymous_bytes()
        return highest - self._start

    def _sample(self) -> None:
        while not self._is_done.is_set():
            self._highest = max(self._highest, anonymous_bytes())
            time.sleep(0.002)


def anonymous_bytes() -> int:
    """Resident memory of this process that is no file's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
