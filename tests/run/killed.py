"""A process that writes a trajectory until it is killed, and what must be true after each kill.

Each life goes on where the one before stopped, as a training that resumes does. What a step holds
follows from its number, so that every bit can be checked.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file

from backtrack.records import BaseModelReference, Manifest, Method
from backtrack.records.record import now
from backtrack.run.bits import Bits
from backtrack.run.checkpoint_writer import clean_up
from backtrack.run.coded_chain import read_bits, verified_folder
from backtrack.run.directory import Run
from backtrack.run.thinning import TrajectoryBudget
from backtrack.run.trajectory_writer import Offered, TrajectoryWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY_EVERY = 4
LONGEST_LIFE_SECONDS = 0.08
_NUM_VALUES = 20_000


def state(step: int) -> dict[str, Bits]:
    """Weights of which each step moves a seventh a little."""
    place = np.arange(_NUM_VALUES, dtype=np.uint32)
    values = 1_000_000_000 + place * 7919 + (place % 7 == 0) * np.uint32(step)
    return {
        "w": Bits("F32", (100, 200), values.astype(np.uint32)),
        "step": Bits("F32", (), np.full(1, step, np.uint32)),
    }


def make_run(path: Path) -> Run:
    manifest = Manifest(
        name=path.name,
        base=BaseModelReference(model="base"),
        method=Method(kind="full"),
        created=now(),
    )
    return Run.create(path, manifest)


def writer_for(run: Run, *, is_coded: bool, most: int | None = None) -> TrajectoryWriter:
    clean_up(run)
    return TrajectoryWriter(
        run,
        is_coded=is_coded,
        budget=TrajectoryBudget(max_checkpoints=most),
        key_every=KEY_EVERY,
        begun_at=run.steps[-1] if run.steps else 0,
    )


def offered(step: int) -> Offered:
    return Offered(step, lambda: state(step), files={"config.json": b"{}"})


def write_forever(path: str, is_coded: bool, most: int | None) -> None:
    """The process that is killed."""
    run = Run.open(path)
    writer = writer_for(run, is_coded=is_coded, most=most)
    step = run.steps[-1] if run.steps else 0
    while True:
        step += 1
        writer.offer(offered(step))


def is_whole(run: Run, step: int) -> bool:
    """Whether a step holds what was offered, bit for bit."""
    expected = state(step)
    if run.entry(step).storage == "coded":
        found: Mapping[str, Bits] = read_bits(run, step)
        return all(np.array_equal(found[n].values, expected[n].values) for n in expected)
    weights = load_file(verified_folder(run, step) / "model.safetensors")
    return all(
        np.array_equal(weights[n].reshape(-1).view(np.uint32), expected[n].values)
        for n in expected
    )


@dataclass
class Survey:
    """What a series of kills left: tried, survived with all as promised, steps at the end."""

    tried: int = 0
    survived: int = 0
    steps: int = 0


def kill_again_and_again(
    path: Path, kills: int, *, is_coded: bool, most: int | None = None, seed: int = 0
) -> Survey:
    """Write, kill at a random moment, look at everything; then once more from there."""
    make_run(path)
    chance = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    survey = Survey()
    last = 0
    for _ in range(kills):
        process = context.Process(target=write_forever, args=(str(path), is_coded, most))
        process.start()
        while len(Run.open(path).steps) == 0 and process.is_alive():
            time.sleep(0.005)
        time.sleep(chance.uniform(0.005, LONGEST_LIFE_SECONDS))
        process.kill()
        process.join()
        assert process.exitcode == -9
        run = Run.open(path)
        survey.tried += 1
        survey.survived += _is_as_promised(run, last, most)
        last = run.steps[-1]
    _live_in_peace(path, is_coded=is_coded, most=most)
    survey.steps = len(Run.open(path).steps)
    return survey


def _live_in_peace(path: Path, *, is_coded: bool, most: int | None) -> None:
    """One step more, and nobody kills: all is whole and the budget met."""
    run = Run.open(path)
    writer = writer_for(run, is_coded=is_coded, most=most)
    writer.offer(offered(run.steps[-1] + 1))
    writer.close()
    run = Run.open(path)
    assert most is None or len(run.steps) == min(most, run.steps[-1])
    assert all(is_whole(run, step) for step in run.steps)


def _is_as_promised(run: Run, last: int, most: int | None) -> bool:
    """Every step up to the newest is there, unless the budget took it, and every one is whole."""
    if not run.steps or run.steps[-1] < last:
        return False
    if most is None and run.steps != tuple(range(1, run.steps[-1] + 1)):
        return False
    # A kill may come before the budget is met; `kill_again_and_again` sees to the end of it.
    if most is not None and len(run.steps) < min(run.steps[-1], most):
        return False
    to_check = run.steps if most is not None else [s for s in run.steps if s > last - KEY_EVERY]
    return all(is_whole(run, step) for step in to_check)
