"""Time and peak memory of a diagnosis by the size of a module, and agreement with NumPy and SciPy.

    python tests/bench/diagnosing.py [LARGEST]

For square modules of rising width, each in its own process: seconds of each part, and their ratio
to the seconds of the matrix products that it needs at least, measured in the same process; and the
peak of additional memory, divided by the bytes of the weight in fp32. 2,048 tokens, two points.
Then the largest relative difference from whole matrices in NumPy and SciPy (tests/diagnose/
independent.py), at width 256, 700 tokens, over updates from 1e-4 to 1 of the weight.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

NUM_TOKENS = 2048
NUM_POINTS = 2
REPEATS = 3
PARTS = ("directions", "profiles", "moments", "drift", "outputs", "geometry")


def main(largest: int) -> None:
    print(f"load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads", flush=True)
    print("width mode        " + "".join(f"{part:>18}" for part in PARTS) + "  memory / weight")
    for width in (256, 512, 1024, 2048, 4096):
        if width > largest:
            break
        for mode in ("exact", "randomized"):
            if mode == "exact" and width > 2048:
                continue
            done = subprocess.run(
                [sys.executable, __file__, "--one", str(width), mode],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            found = json.loads(done.stdout.splitlines()[-1])
            cells = "".join(f"{found[part][0]:9.3f}s /{found[part][1]:6.1f}" for part in PARTS)
            print(f"{width:5} {mode:<11} {cells}  {found['memory']:.1f}", flush=True)
    agreement()


def one(width: int, mode: str) -> None:
    """Seconds of each part, and their ratio to those of the matrix products it needs."""
    from backtrack.diagnose.activations import Pairs
    from backtrack.diagnose.drift import Moments, drift
    from backtrack.diagnose.spectrum import directions, spectrum

    torch.manual_seed(0)
    weight, update = torch.randn(width, width), 0.01 * torch.randn(width, width)
    rows = torch.randn(NUM_TOKENS, width)
    ends = [rows + 0.1 * torch.randn(NUM_TOKENS, width) for _ in range(NUM_POINTS)]
    product = timed(lambda: weight @ update)
    sums = timed(lambda: rows.T @ rows)
    # LAPACK allocates at its first call, which is not part of a module's memory.
    for warm in (torch.linalg.svd, torch.linalg.qr):
        warm(torch.eye(8))
    torch.linalg.eigh(torch.eye(8, dtype=torch.float64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    base = directions(weight, mode)  # type: ignore[arg-type]
    moments = Moments()
    moments.add(rows)
    pairs = Pairs(NUM_POINTS)
    pairs.add(rows, ends)
    found = {
        "directions": (timed(lambda: directions(weight, mode)), product),  # type: ignore[arg-type]
        "profiles": (timed(lambda: spectrum(base, update)), product),
        "moments": (timed(lambda: Moments().add(rows)), sums),
        "drift": (timed(lambda: drift(moments, weight, update)), 2 * product),
        "outputs": (timed(lambda: Pairs(NUM_POINTS).add(rows, ends)), (2 + 4 * NUM_POINTS) * sums),
        "geometry": (timed(pairs.geometry), NUM_POINTS * product),
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    printed: dict[str, object] = {n: (spent, spent / least) for n, (spent, least) in found.items()}
    print(json.dumps({**printed, "memory": 1024 * peak / weight.nbytes}))


def timed(work: Callable[[], object]) -> float:
    """Median seconds of a few calls."""
    spent = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        spent.append(time.perf_counter() - begin)
    return statistics.median(spent)


def agreement() -> None:
    """Largest relative difference from the independent implementation, by metric."""
    from backtrack.diagnose.activations import Pairs
    from backtrack.diagnose.drift import Moments, drift
    from backtrack.diagnose.spectrum import directions, spectrum
    from tests.diagnose import independent

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    worst: dict[str, float] = {}
    for size in (1e-4, 1e-2, 1.0):
        weight, update = random(256, 256), size * random(256, 256)
        rows = random(700, 256) @ random(256, 256) / 16
        end = rows + size * random(700, 256)
        tuned = weight + update
        moments = Moments()
        moments.add(rows)
        pairs = Pairs(1)
        pairs.add(rows, [end])
        ours = {
            **spectrum(directions(weight, "exact"), tuned - weight).model_dump(),
            **drift(moments, weight, tuned - weight).model_dump(),
            **pairs.geometry()[0].model_dump(),
        }
        profiles = independent.spectrum(weight.numpy(), tuned.numpy())
        theirs: dict[str, float] = {
            "effective_rank": float(profiles["effective_rank"]),
            **independent.drift(weight.numpy(), tuned.numpy(), rows.numpy()),
            **independent.geometry(rows.numpy(), end.numpy()),
        }
        for name, value in theirs.items():
            off = abs(ours[name] - value) / max(abs(value), 1e-12)
            worst[name] = max(worst.get(name, 0.0), off)
    print("largest relative difference from NumPy and SciPy, updates of 1e-4 to 1 of the weight:")
    for name, off in worst.items():
        print(f"  {name:<20} {off:.1e}")


if __name__ == "__main__":
    if "--one" in sys.argv:
        one(int(sys.argv[2]), sys.argv[3])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 2048)
