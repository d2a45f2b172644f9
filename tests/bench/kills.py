"""Kill a process that writes checkpoints, and flip bits in its files: what survives?

python tests/bench/kills.py 200
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from backtrack.errors import CheckpointError
from backtrack.run.directory import Run
from tests.run.killed import is_whole, kill_again_and_again, make_run, offered, writer_for

SERIES = {"coded": (True, None), "coded, thinned to 6": (True, 6), "plain": (False, None)}


def kills(num_kills: int, folder: Path) -> None:
    tried = survived = 0
    for number, (name, (is_coded, most)) in enumerate(SERIES.items()):
        share = num_kills // len(SERIES) + (number < num_kills % len(SERIES))
        begin = time.perf_counter()
        survey = kill_again_and_again(
            folder / str(number), share, is_coded=is_coded, most=most, seed=number
        )
        tried, survived = tried + survey.tried, survived + survey.survived
        print(
            f"{name}: {survey.survived} of {survey.tried} kills survived, {survey.steps} steps at "
            f"the end, {time.perf_counter() - begin:.0f} s",
            flush=True,
        )
    print(f"kills survived {survived} of {tried}, ratio {survived / tried:.3f}")


def faults(folder: Path) -> None:
    """Flip one bit in each file of a trajectory in turn: is it reported, and what else is lost?"""
    run = make_run(folder / "faults")
    writer = writer_for(run, is_coded=True)
    for step in range(1, 25):
        writer.offer(offered(step))
    writer.close()
    reported = missed = dependent = wrong = 0
    for step in run.steps:
        path = run.folder(step) / "coded.safetensors"
        good = path.read_bytes()
        bad = bytearray(good)
        bad[len(bad) * step // 25] ^= 1
        path.write_bytes(bad)
        for other in run.steps:
            outcome = read_step(Run.open(run.path), other)
            reported += other == step and outcome == "reported"
            missed += other == step and outcome != "reported"
            dependent += other != step and outcome == "reported"
            wrong += other != step and outcome == "wrong"
        path.write_bytes(good)
    total = len(run.steps)
    print(
        f"bits flipped {total}, reported {reported}, missed {missed}, other steps read wrong "
        f"{wrong}; steps that depend on the damaged one {dependent / total:.1f} on average (of 3)"
    )


def read_step(run: Run, step: int) -> str:
    try:
        return "whole" if is_whole(run, step) else "wrong"
    except CheckpointError:
        return "reported"


def main(num_kills: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kills(num_kills, Path(folder))
        faults(Path(folder))


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 200)
