"""A budget is kept evenly, and the same whether or not training was killed in between."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import pytest

from backtrack.run.coded_chain import chain_steps
from backtrack.run.directory import Run
from backtrack.run.thinning import TrajectoryBudget, survivors
from backtrack.run.trajectory_writer import TrajectoryWriter
from tests.run.killed import KEY_EVERY, is_whole, make_run, offered


def write(run: Run, steps: range, budget: TrajectoryBudget, begun_at: int = 0) -> Run:
    writer = TrajectoryWriter(
        run, is_coded=True, budget=budget, key_every=KEY_EVERY, begun_at=begun_at
    )
    for step in steps:
        writer.offer(offered(step))
    writer.close()
    return Run.open(run.path)


@pytest.mark.parametrize("most", [4, 9, 16])
@pytest.mark.parametrize("last", [17, 100, 257])
def test_gaps_differ_by_a_factor_of_two_but_for_the_last(most: int, last: int) -> None:
    steps = [step for _, step in survivors([(float(s), s) for s in range(1, last + 1)], most)]
    assert (steps[0], steps[-1], len(steps)) == (1, last, min(most, last))
    gaps = [b - a for a, b in itertools.pairwise(steps[:-1])]
    assert max(gaps) <= 2 * min(gaps) + 1
    assert steps[-1] - steps[-2] <= 2 * max(gaps)


def test_a_thinned_trajectory_reads_back_whole_by_short_chains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run = write(make_run(tmp_path / "run"), range(1, 31), TrajectoryBudget(max_checkpoints=7))
    assert len(run.steps) == 7
    assert all(is_whole(run, step) for step in run.steps)
    assert max(len(chain_steps(run, step)) for step in run.steps) <= KEY_EVERY
    assert {p.name.partition(".")[0] for p in run.trajectory.glob("step-*")} == {
        f"step-{step:08d}" for step in run.steps
    }
    assert caplog.text.count("thinned evenly") == 1


@pytest.mark.parametrize(("killed_at", "resumed_at"), [(14, 9), (25, 8), (29, 0)])
def test_a_resumed_run_keeps_what_an_uninterrupted_one_keeps(
    tmp_path: Path, killed_at: int, resumed_at: int
) -> None:
    budget = TrajectoryBudget(max_checkpoints=6)
    straight = write(make_run(tmp_path / "straight"), range(1, 31), budget)
    run = write(make_run(tmp_path / "resumed"), range(1, killed_at + 1), budget)
    run = write(run, range(resumed_at + 1, 31), budget, begun_at=resumed_at)
    assert run.steps == straight.steps
    assert all(is_whole(run, step) for step in run.steps)


def test_bytes_are_kept_within_the_budget(tmp_path: Path) -> None:
    free = write(make_run(tmp_path / "free"), range(1, 13), TrajectoryBudget())
    total = sum(entry.num_bytes for entry in free.entries())
    run = write(make_run(tmp_path / "run"), range(1, 13), TrajectoryBudget(max_bytes=total // 2))
    assert sum(entry.num_bytes for entry in run.entries()) <= total // 2
    assert (run.steps[0], run.steps[-1]) == (1, 12)
    assert len(run.steps) > 3
    assert all(is_whole(run, step) for step in run.steps)
    on_disk = sum(path.stat().st_size for path in run.trajectory.rglob("coded.safetensors"))
    assert on_disk == sum(entry.num_bytes for entry in run.entries())


def test_a_budget_too_small_for_two_keeps_two(tmp_path: Path) -> None:
    run = write(make_run(tmp_path / "run"), range(1, 6), TrajectoryBudget(max_bytes=1))
    assert run.steps == (1, 5)
