"""The writer thread: nothing whole is lost, whatever happens to it, its disk or its files."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backtrack.errors import CheckpointError
from backtrack.run import trajectory_writer
from backtrack.run.bits import Bits
from backtrack.run.coded_chain import chain_steps
from backtrack.run.directory import Run
from backtrack.run.trajectory_writer import Offered
from tests.run.killed import (
    KEY_EVERY,
    is_whole,
    kill_again_and_again,
    make_run,
    offered,
    state,
    writer_for,
)


def filled(path: Path, last: int, *, is_coded: bool = True, most: int | None = None) -> Run:
    """A run of steps 1 to `last`, written and closed."""
    run = Run.open(path) if (path / "manifest.json").exists() else make_run(path)
    writer = writer_for(run, is_coded=is_coded, most=most)
    for step in range((run.steps[-1] if run.steps else 0) + 1, last + 1):
        writer.offer(offered(step))
    writer.close()
    return Run.open(path)


def offer_all(writer: trajectory_writer.TrajectoryWriter, steps: range) -> None:
    for step in steps:
        writer.offer(offered(step))


@pytest.mark.parametrize("is_coded", [True, False])
def test_steps_come_back_whole_and_chains_stay_short(tmp_path: Path, is_coded: bool) -> None:
    run = filled(tmp_path / "run", 11, is_coded=is_coded)
    assert run.steps == tuple(range(1, 12))
    assert all(is_whole(run, step) for step in run.steps)
    assert max(len(chain_steps(run, step)) for step in run.steps) == (KEY_EVERY if is_coded else 1)


@pytest.mark.parametrize(
    ("is_coded", "most"),
    [(True, None), (True, 6), (False, None)],
    ids=["coded", "thinned", "plain"],
)
def test_kill_nine_at_any_moment_loses_no_whole_checkpoint(
    tmp_path: Path, is_coded: bool, most: int | None
) -> None:
    survey = kill_again_and_again(tmp_path / "run", 12, is_coded=is_coded, most=most)
    assert (survey.tried, survey.survived) == (12, 12)


def test_an_error_of_the_thread_surfaces_and_nothing_is_written_after_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    writer = writer_for(run, is_coded=True)

    def fails() -> dict[str, Bits]:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer.offer(offered(1))
    writer.offer(Offered(2, fails))
    with pytest.raises(CheckpointError, match=r"step 2 could not .*1 checkpoints before"):
        offer_all(writer, range(3, 9))
    with pytest.raises(CheckpointError, match="step 2"):
        writer.flush()
    with pytest.raises(CheckpointError, match="step 2"):
        writer.close()
    assert Run.open(run.path).steps == (1,)


def test_offers_after_an_error_raise_and_never_block(tmp_path: Path) -> None:
    writer = writer_for(make_run(tmp_path / "run"), is_coded=True)

    def fails() -> dict[str, Bits]:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer.offer(Offered(1, fails))
    with pytest.raises(CheckpointError):
        writer.flush()
    raised = []

    def offer_often() -> None:
        for step in range(2, 4 + 2 * trajectory_writer.MAX_PENDING):
            try:
                writer.offer(offered(step))
            except CheckpointError as error:
                raised.append(error)

    trainer = threading.Thread(target=offer_often, daemon=True)
    trainer.start()
    trainer.join(10)
    assert not trainer.is_alive()
    assert len(raised) == 2 + 2 * trajectory_writer.MAX_PENDING


def test_an_offer_to_a_closed_writer_raises_and_never_blocks(tmp_path: Path) -> None:
    writer = writer_for(make_run(tmp_path / "run"), is_coded=True)
    writer.close()

    def offer_often() -> None:
        for step in range(1, 2 + trajectory_writer.MAX_PENDING):
            with pytest.raises(RuntimeError):
                writer.offer(offered(step))

    trainer = threading.Thread(target=offer_often, daemon=True)
    trainer.start()
    trainer.join(10)
    assert not trainer.is_alive()


def test_what_was_offered_is_written_though_the_interpreter_ends(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    script = (
        "import sys; from tests.run.killed import *; r = Run.open(sys.argv[1]); "
        "w = writer_for(r, is_coded=True); [w.offer(offered(s)) for s in range(1, 6)]; 1 / 0"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ZeroDivisionError" in ended.stderr
    assert Run.open(tmp_path / "run").steps == (1, 2, 3, 4, 5)


def weights(run: Run, step: int) -> Path:
    return run.folder(step) / "coded.safetensors"


def flip(path: Path) -> None:
    octets = bytearray(path.read_bytes())
    octets[len(octets) // 2] ^= 1
    path.write_bytes(octets)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_damage_is_named_the_rest_is_read_and_training_goes_on(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = filled(tmp_path / "run", 7)
    damaged = weights(run, 6)
    harm(damaged)
    run = Run.open(run.path)
    assert all(is_whole(run, step) for step in range(1, 6))
    with pytest.raises(CheckpointError, match=f"step 6: {damaged}"):
        is_whole(run, 6)
    with pytest.raises(CheckpointError, match="step 7 is coded against step 6"):
        is_whole(run, 7)

    with caplog.at_level(logging.WARNING):
        run = filled(run.path, 9)

    assert "step 8 begins a new chain" in caplog.text
    assert all(is_whole(run, step) for step in (1, 2, 3, 4, 5, 8, 9))
    assert 6 in run.steps


def test_a_damaged_line_of_the_index_hides_its_step_only_until_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = filled(tmp_path / "run", 6)
    index = run.trajectory / "index.jsonl"
    lines = index.read_text().splitlines()
    lines[2] = lines[2].replace('"step"', '"stop"')
    index.write_text("\n".join(lines) + "\n")
    run = Run.open(run.path)
    with caplog.at_level(logging.WARNING):
        assert run.steps == (1, 2, 4, 5, 6)
    assert "line 3 is truncated or damaged" in caplog.text
    assert is_whole(run, 2)
    with pytest.raises(CheckpointError, match="coded against step 3, which is not in the run"):
        is_whole(run, 4)

    run = filled(run.path, 7)

    assert run.steps == (1, 2, 3, 4, 5, 6, 7)
    assert all(is_whole(run, step) for step in run.steps)


def test_a_folder_that_was_whole_when_the_index_was_not_yet_written_is_taken_up(
    tmp_path: Path,
) -> None:
    run = filled(tmp_path / "run", 3)
    index = run.trajectory / "index.jsonl"
    index.write_text("".join(index.read_text().splitlines(keepends=True)[:2]))
    assert Run.open(run.path).steps == (1, 2)
    run = filled(run.path, 4)
    assert run.steps == (1, 2, 3, 4)
    assert all(is_whole(run, step) for step in run.steps)


@pytest.mark.parametrize("is_changed", [False, True])
def test_steps_taken_again_replace_the_old_and_never_break_those_after(
    tmp_path: Path, is_changed: bool
) -> None:
    run = filled(tmp_path / "run", 7)
    before = {entry.step: entry for entry in run.entries()}
    writer = trajectory_writer.TrajectoryWriter(
        run, is_coded=True, key_every=KEY_EVERY, begun_at=2
    )
    shift = 100 if is_changed else 0
    for step in (3, 4):
        writer.offer(Offered(step, lambda step=step: state(step + shift)))  # type: ignore[misc]
    writer.close()
    run = Run.open(run.path)
    assert run.steps == tuple(range(1, 8))
    assert [is_whole(run, step) for step in (1, 2, 5, 6, 7)] == [True] * 5
    assert [is_whole(run, step) for step in (3, 4)] == [not is_changed] * 2
    if not is_changed:
        assert {entry.step: entry for entry in run.entries()} == before


def test_steps_of_an_earlier_attempt_go_once_training_has_passed_them(tmp_path: Path) -> None:
    run = filled(tmp_path / "run", 6)
    writer = trajectory_writer.TrajectoryWriter(
        run, is_coded=True, key_every=KEY_EVERY, begun_at=2
    )
    writer.offer(offered(4))
    writer.close()
    run = Run.open(run.path)
    assert run.steps == (1, 2, 4, 5, 6)
    assert all(is_whole(run, step) for step in run.steps)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 600 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("this account may not mount a small disk; RLIMIT_FSIZE stands in elsewhere")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_with_a_word_and_spares_what_is_whole(small_disk: Path) -> None:
    run = make_run(small_disk / "run")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 300_000)
    writer = writer_for(run, is_coded=True)
    with pytest.raises(CheckpointError, match=r"No space left on device.*Make room, then resume"):
        offer_all(writer, range(1, 100))
    run = Run.open(run.path)
    last = run.steps[-1]
    assert run.steps == tuple(range(1, last + 1))
    assert all(is_whole(run, step) for step in run.steps)

    ballast.unlink()
    run = filled(run.path, last + 2)
    assert run.steps == tuple(range(1, last + 3))
    assert all(is_whole(run, step) for step in run.steps)
