"""Several processes that search one run together, on this machine.

Each is a `backtrack search --worker` of its own, with one of the GPUs where there are several.
They share the run's folder and its study. A worker that is killed is noted and the others go on;
its unit of work is taken up by another once it has given no sign of life for a while.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtrack.errors import RunError, UsageError
from backtrack.selection.search.budget import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backtrack.records import Measurement
    from backtrack.run.directory import Run

SECONDS_BETWEEN_LOOKS = 0.5
STORAGE = "BACKTRACK_STORAGE"
"""Stands in for `--storage` where that is not given."""


def search_together(  # noqa: PLR0913  # all but the first two are optional
    run: Run,
    num_workers: int,
    arguments: Sequence[str] = (),
    *,
    storage: str | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: Callable[[int, int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[Measurement]:
    """Search a run by several processes, and wait for them.

    Args:
        run: The run; its recipe says what to measure.
        num_workers: Processes.
        arguments: Further ones of `backtrack search`, the same for each.
        storage: URL of the database they share. They get it by their environment, since it may
            hold a password and every user of a machine sees its processes' arguments.
        on_plan: Called once, with what the first worker to say so makes of it all.
        on_progress: Called with the items scored so far, those in all as far as is known, and the
            workers still at it.
        on_note: Told of a worker that ended before its time.

    Returns:
        What is on record of selection items when all have ended.

    Raises:
        UsageError: Fewer than one worker.
        RunError: No worker reached the end; with what the last one said.
    """
    if num_workers < 1:
        raise UsageError(f"a search takes one worker or more, got {num_workers}.")
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"worker-{i}.txt" for i in range(num_workers)]
        shared = {STORAGE: storage} if storage else {}
        processes = [_start(run, i, arguments, shared, log) for i, log in enumerate(logs)]
        told = _Told([_said(log) for log in logs], on_plan)
        try:
            _wait(run, processes, told, on_progress)
        except BaseException:
            _stop(processes)
            raise
        _require_one_that_ended(processes, logs, on_note)
    return [m for m in run.measurements() if m.split == "selection"]


def _start(
    run: Run, index: int, arguments: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "backtrack", "search", str(run.path), "--worker", "--quiet"]
    with log.open("wb") as file, _said(log).open("wb") as said:
        return subprocess.Popen(  # the arguments are our own
            [*command, *arguments],
            stdout=said,
            stderr=file,
            env={**os.environ, **environment, **_device(index)},
        )


def _device(index: int) -> dict[str, str]:
    """A GPU of its own for each worker, round and round; nothing where there is one or none."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = listed.split(",") if listed else [str(i) for i in range(_num_gpus())]
    return {"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]} if len(devices) > 1 else {}


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _said(log: Path) -> Path:
    """Where a worker's standard output goes: a line of JSON for its plan and each of its steps."""
    return log.with_suffix(".jsonl")


class _Told:
    """What workers say of the whole search while it goes on."""

    def __init__(self, files: Sequence[Path], on_plan: Callable[[Plan], None] | None) -> None:
        self._files = files
        self._on_plan = on_plan

    def total(self) -> int:
        """Items in all, as the furthest worker sees it; 0 before one has said."""
        lines = [line for file in self._files for line in _whole_lines(file)]
        plans = [line["plan"] for line in lines if "plan" in line]
        if plans and self._on_plan is not None:
            self._on_plan(Plan(**plans[0]))
            self._on_plan = None
        steps = [(line["done"], line["total"]) for line in lines if "done" in line]
        return max(steps)[1] if steps else 0


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8", errors="replace")
    return [json.loads(line) for line in text.split("\n")[:-1] if line.startswith("{")]


def _wait(
    run: Run,
    processes: Sequence[subprocess.Popen[bytes]],
    told: _Told,
    on_progress: Callable[[int, int, int], None] | None,
) -> None:
    record = run.path / "measurements.jsonl"
    size = -1
    while any(process.poll() is None for process in processes):
        time.sleep(SECONDS_BETWEEN_LOOKS)
        now = record.stat().st_size if record.exists() else 0
        if on_progress is not None and now != size:
            size = now
            scored = sum(len(m.item_ids) for m in run.measurements() if m.split == "selection")
            running = sum(process.poll() is None for process in processes)
            on_progress(scored, max(told.total(), scored), running)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what was started; what is measured stays measured."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        process.wait()


def _require_one_that_ended(
    processes: Sequence[subprocess.Popen[bytes]],
    logs: Sequence[Path],
    on_note: Callable[[str], None] | None,
) -> None:
    failed = [(i, p.returncode) for i, p in enumerate(processes) if p.returncode != 0]
    said = [logs[i].read_text(encoding="utf-8", errors="replace").strip() for i, _ in failed]
    if len(failed) == len(processes):
        last = said[-1].splitlines()[-1] if said[-1] else f"exit code {failed[-1][1]}"
        raise RunError(
            f"none of the {len(processes)} workers reached the end. The last one said: "
            f"{last.removeprefix('error: ')} What was measured is kept: the same command goes on."
        )
    for (i, code), text in zip(failed, said, strict=True):
        how = f"was killed (signal {-code})" if code < 0 else f"failed: {text}"
        if on_note is not None:
            on_note(f"worker {i + 1} {how}; the others did its work.")
