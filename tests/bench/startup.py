"""What `backtrack --help` costs beside `python -c "import torch"`: medians and their ratio.

python tests/bench/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 7


def seconds(*command: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    helps, torches = [], []
    for _ in range(ROUNDS):
        helps.append(seconds("-m", "backtrack", "--help"))
        torches.append(seconds("-c", "import torch"))
    ours, theirs = statistics.median(helps), statistics.median(torches)
    print(
        f"--help {ours:.2f} s, import torch {theirs:.2f} s, ratio {ours / theirs:.2f} (bound 0.33)"
    )


if __name__ == "__main__":
    main()
