"""Speedup of three workers over one: wall time of a search whose objectives sleep.

    python tests/bench/workers.py [SECONDS]

The objectives are formulas that sleep, as a process waits for a GPU of its own. Workers are
processes that share the run's study. The time to start them, which imports torch and Optuna, is
measured separately and subtracted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.selection.fakes import make_recipe, make_run

ROOT = Path(__file__).resolve().parents[2]


def seconds(folder: Path, num_workers: int, pause: float, trials: int = 6) -> float:
    """Wall time of a search by `num_workers`."""
    run = make_run(folder, make_recipe(trials=trials, racing={"shares": [0.25, 0.5]}))
    script = str(ROOT / "tests" / "selection" / "search_in_process.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    workers = [
        subprocess.Popen(
            [sys.executable, script, str(run.path), "", str(pause)],
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        for _ in range(num_workers)
    ]
    for worker in workers:
        assert worker.wait() == 0
    return time.perf_counter() - begin


def main(pause: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        idle = {n: seconds(base / f"idle{n}", n, 0.0, trials=0) for n in (1, 3)}
        full = {n: seconds(base / f"full{n}", n, pause) for n in (1, 3)}
    print(f"one worker {full[1]:.1f} s, three {full[3]:.1f} s: {full[1] / full[3]:.2f} times")
    print(
        f"without the time of a search that does not sleep ({idle[1]:.1f} and {idle[3]:.1f} s): "
        f"{(full[1] - idle[1]) / max(full[3] - idle[3], 1e-9):.2f} times"
    )


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 0.5)
