"""Target and general of base, final and chosen point on report items, for several seeds of the
demo.

python tests/bench/demo_seeds.py 5
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from backtrack.demo import run_demo

if TYPE_CHECKING:
    from backtrack.records import Interval
    from backtrack.records.selection import Selection


def row(seed: int, selection: Selection, seconds: float) -> str:
    """One line of the table."""
    ends = [
        f"{selection.report[name].target.estimate:5.1f} / "
        f"{selection.report[name].general.estimate:5.1f}"
        for name in ("base", "final", "chosen")
    ]
    against = next(d for d in selection.differences if d.to == "final")
    return (
        f"{seed:>4} | {' | '.join(ends)} | {selection.chosen} | {shown(against.target)} | "
        f"{shown(against.general)} | {shown(against.utility)} | {selection.optimism:+.1f} | "
        f"{seconds:.0f} s"
    )


def shown(interval: Interval) -> str:
    return f"{interval.estimate:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"


def main(num_seeds: int) -> None:
    print(
        "seed | base target/general | final | chosen | point | chosen - final: target | general | "
        "utility | optimism | time"
    )
    for seed in range(num_seeds):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            demo = run_demo(Path(folder), seed=seed, is_quiet=True)
            print(row(seed, demo.selection, time.perf_counter() - begin), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 5)
