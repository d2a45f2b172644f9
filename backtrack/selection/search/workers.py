"""Several processes on this machine that search one run together.

Each is a `backtrack search --worker`, on a GPU of its own if there are several. They share the
run's folder and its study. If a worker dies the others continue, and another one redoes its
evaluation after `search.patience_seconds` without a heartbeat.
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

SECONDS_BETWEEN_POLLS = 0.5
STORAGE = "BACKTRACK_STORAGE"
"""Environment variable that `--storage` defaults to."""


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
        num_workers: Number of processes.
        arguments: Further arguments of `backtrack search`, the same for each worker.
        storage: URL of the database they share. Passed in their environment, since it may hold a
            password and every user of a machine sees the arguments of its processes.
        on_plan: Called once, with the plan of the first worker that printed one.
        on_progress: Called with the items scored by this command, the expected total and the
            number of workers still running.
        on_note: Called with a message for each worker that failed.

    Returns:
        All recorded measurements of selection items when every worker has ended.

    Raises:
        UsageError: Fewer than one worker.
        RunError: Every worker failed; with the last one's error.
    """
    if num_workers < 1:
        raise UsageError(f"a search needs at least 1 worker, got {num_workers}.")
    run.save_choosing()  # the workers read it
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / f"worker-{i}.txt" for i in range(num_workers)]
        environment = {STORAGE: storage} if storage else {}
        processes = [_start(run, i, arguments, environment, log) for i, log in enumerate(logs)]
        outputs = _Outputs([_output_path(log) for log in logs], on_plan)
        try:
            _wait(run, processes, outputs, on_progress)
        except BaseException:
            _stop(processes)
            raise
        _require_one_success(processes, logs, on_note)
    return [m for m in run.measurements() if m.split == "selection"]


def _start(
    run: Run, index: int, arguments: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "backtrack", "search", str(run.path), "--worker", "--quiet"]
    with log.open("wb") as errors, _output_path(log).open("wb") as output:
        return subprocess.Popen(
            [*command, *arguments],
            stdout=output,
            stderr=errors,
            env={**os.environ, **environment, **_device(index)},
        )


def _device(index: int) -> dict[str, str]:
    """One GPU for each worker, in turn; no restriction if there are fewer than two."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = listed.split(",") if listed else [str(i) for i in range(_num_gpus())]
    return {"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]} if len(devices) > 1 else {}


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _output_path(log: Path) -> Path:
    """The file of a worker's standard output: one line of JSON for its plan and each progress."""
    return log.with_suffix(".jsonl")


class _Outputs:
    """The workers' standard outputs, read while they run."""

    def __init__(self, files: Sequence[Path], on_plan: Callable[[Plan], None] | None) -> None:
        self._files = files
        self._on_plan = on_plan

    def num_left(self) -> int:
        """Items still to be scored by the most advanced worker; 0 before any has printed it."""
        lines = [line for file in self._files for line in _complete_lines(file)]
        plans = [line["plan"] for line in lines if "plan" in line]
        if plans and self._on_plan is not None:
            self._on_plan(Plan(**plans[0]))
            self._on_plan = None
        return min((line["left"] for line in lines if "left" in line), default=0)


def _complete_lines(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8", errors="replace")
    return [json.loads(line) for line in text.split("\n")[:-1] if line.startswith("{")]


def _wait(
    run: Run,
    processes: Sequence[subprocess.Popen[bytes]],
    outputs: _Outputs,
    on_progress: Callable[[int, int, int], None] | None,
) -> None:
    path = run.path / "measurements.jsonl"
    last_size = -1
    before = _num_scored(run)
    while any(process.poll() is None for process in processes):
        time.sleep(SECONDS_BETWEEN_POLLS)
        size = path.stat().st_size if path.exists() else 0
        if on_progress is not None and size != last_size:
            last_size = size
            scored = _num_scored(run) - before
            running = sum(process.poll() is None for process in processes)
            on_progress(scored, scored + outputs.num_left(), running)


def _num_scored(run: Run) -> int:
    return sum(len(m.item_ids) for m in run.measurements() if m.split == "selection")


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Terminate all workers; their measurements are recorded."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        process.wait()


def _require_one_success(
    processes: Sequence[subprocess.Popen[bytes]],
    logs: Sequence[Path],
    on_note: Callable[[str], None] | None,
) -> None:
    failed = [(i, p.returncode) for i, p in enumerate(processes) if p.returncode != 0]
    errors = [logs[i].read_text(encoding="utf-8", errors="replace").strip() for i, _ in failed]
    if len(failed) == len(processes):
        last = errors[-1].splitlines()[-1] if errors[-1] else f"exit code {failed[-1][1]}"
        raise RunError(
            f"none of the {len(processes)} workers finished. The error of the last one: "
            f"{last.removeprefix('error: ')} What was measured is recorded; "
            "the same command resumes."
        )
    for (i, code), text in zip(failed, errors, strict=True):
        how = f"was killed (signal {-code})" if code < 0 else f"failed: {text}"
        if on_note is not None:
            on_note(f"worker {i + 1} {how}; the others finished the search.")
