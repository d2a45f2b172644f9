"""A run on disk: whole or absent, appended to by many writers, closed to strangers."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from backtrack.errors import CheckpointError, PointError, RunError
from backtrack.point import Point
from backtrack.records import (
    BaseModelReference,
    CheckpointEntry,
    Manifest,
    Measurement,
    Method,
    ObjectiveInfo,
)
from backtrack.records.record import now
from backtrack.run import checkpoint_reader
from backtrack.run.checkpoint_reader import fingerprint, read_checkpoint, read_tensors
from backtrack.run.checkpoint_writer import write_checkpoint
from backtrack.run.directory import Run
from backtrack.run.finding import find_run

if TYPE_CHECKING:
    from collections.abc import Iterator

INFO = ObjectiveInfo(
    name="sums",
    role="target",
    kind="examples",
    direction="maximize",
    unit="fraction",
    fingerprint="f",
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    manifest = Manifest(
        name="r", base=BaseModelReference(model="base"), method=Method(kind="full"), created=now()
    )
    return Run.create(tmp_path / "r", manifest)


def weights(folder: Path, value: float = 1.0) -> None:
    save_file({"w": torch.full((8,), value)}, folder / "model.safetensors")


def measurement(alpha: float, num_items: int = 500) -> Measurement:
    return Measurement(
        point=Point(step=1, alpha=alpha), objective=INFO, form="attached", curve="native",
        split="selection",
        item_ids=tuple(f"sums/{i}" for i in range(num_items)), scores=(alpha,) * num_items,
        distance=alpha, seconds=0.1, origin="anchor",
    )  # fmt: skip


def test_what_was_written_is_read_back(run: Run) -> None:
    write_checkpoint(run, 10, weights, train_loss=0.5)
    run.record(measurement(0.25))
    again = Run.open(run.path)
    assert again.steps == (10,)
    assert again.final == Point(step=10, alpha=1)
    assert again.entry(10).train_loss == 0.5
    assert again.measurements() == [measurement(0.25)]
    assert torch.equal(read_checkpoint(again, 10)["w"], torch.ones(8))


def test_a_failed_write_leaves_nothing_and_the_older_checkpoint_stays(run: Run) -> None:
    write_checkpoint(run, 10, weights)

    def fails(folder: Path) -> None:
        weights(folder, 2.0)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_checkpoint(run, 10, fails)
    assert torch.equal(read_checkpoint(Run.open(run.path), 10)["w"], torch.ones(8))
    assert [path.name for path in run.trajectory.iterdir() if path.is_dir()] == ["step-00000010"]


def test_a_step_written_again_replaces_the_old_one(run: Run) -> None:
    write_checkpoint(run, 10, weights)
    write_checkpoint(run, 10, lambda folder: weights(folder, 3.0))
    assert Run.open(run.path).steps == (10,)
    assert read_checkpoint(run, 10)["w"][0] == 3


def test_a_line_cut_short_by_a_kill_is_passed_over_and_the_next_is_whole(run: Run) -> None:
    run.record(measurement(0.25))
    with (run.path / "measurements.jsonl").open("a") as file:
        file.write('{"point": {"step": 1, "al')
    run.record(measurement(0.5))
    assert [m.point.alpha for m in run.measurements()] == [0.25, 0.5]


def append_many(path: str, start: int) -> None:
    run = Run.open(path)
    for i in range(20):
        run.record(measurement((start * 20 + i) / 100, num_items=3000))


def test_several_writers_do_not_mix_their_lines(run: Run) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=append_many, args=(str(run.path), i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(m.point.alpha for m in run.measurements()) == [i / 100 for i in range(60)]


@pytest.mark.parametrize("folder", ["../../outside", "/etc"])
def test_an_index_that_points_outside_the_run_is_refused(run: Run, folder: str) -> None:
    write_checkpoint(run, 10, weights)
    line = json.loads((run.trajectory / "index.jsonl").read_text()) | {"folder": folder}
    (run.trajectory / "index.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(RunError, match="outside"):
        Run.open(run.path).folder(10)


@pytest.mark.parametrize(
    "change",
    [{"format_version": 2}, {"base": None}, {"stranger": 1}, {"created": ["x"]}],
)
def test_a_hostile_manifest_is_refused_with_the_field(run: Run, change: dict[str, Any]) -> None:
    path = run.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=next(iter(change))):
        Run.open(run.path)


def test_a_measurement_whose_ids_and_scores_do_not_pair_is_refused(run: Run) -> None:
    run.record(measurement(0.25, num_items=3))
    path = run.path / "measurements.jsonl"
    path.write_text(path.read_text().replace("sums/2", "sums/1"))
    with pytest.raises(RunError, match="line 1"):
        run.measurements()


def test_an_unknown_step_names_those_there_are(run: Run) -> None:
    write_checkpoint(run, 10, weights)
    with pytest.raises(PointError, match="It has: 10"):
        run.folder(11)


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"manifest\.json"):
        Run.open(tmp_path)
    with pytest.raises(RunError, match="backtrack demo"):
        find_run(None, tmp_path / "runs")


def test_a_file_is_hashed_once_until_it_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_reader, "_SETTLED_NS", -1)
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    first = fingerprint(tmp_path)
    read: list[Path] = []
    original = checkpoint_reader._digests

    def digests(path: Path) -> dict[str, str]:
        read.append(path)
        return original(path)

    monkeypatch.setattr(checkpoint_reader, "_digests", digests)
    assert fingerprint(tmp_path) == first
    assert not read
    save_file({"a": torch.ones(3)}, path)
    assert fingerprint(tmp_path) != first
    assert read == [path]


def test_a_file_that_may_still_change_is_hashed_each_time(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    times = path.stat()
    first = fingerprint(tmp_path)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(tmp_path) != first


def test_a_fingerprint_tells_one_flipped_bit(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, value in zip(folders, (1.0, 1.0, 1.0000001), strict=True):
        folder.mkdir()
        weights(folder, value)
    assert fingerprint(folders[0]) == fingerprint(folders[1]) != fingerprint(folders[2])


def test_garbage_for_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_tensors(tmp_path)


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads that give way to each other as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def entry(step: int) -> CheckpointEntry:
    return CheckpointEntry(step=step, folder=f"step-{step:08d}", num_bytes=step, sha256={})


@pytest.mark.usefixtures("eager_switching")
def test_the_index_is_read_while_another_thread_writes_it(run: Run) -> None:
    errors: list[Exception] = []
    is_done = threading.Event()

    def read() -> None:
        while not is_done.is_set():
            try:
                steps = run.steps
                assert steps == tuple(sorted(set(steps)))
                assert all(e.num_bytes == e.step for e in run.entries())
                assert not steps or run.final.step >= steps[-1]
            except Exception as error:  # noqa: BLE001  # a thread's error would be lost
                errors.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(1, 400):
        run.add_entry(entry(step))
        if step % 3 == 0:
            run.drop_entry(step - 1)
    is_done.set()
    reader.join()
    assert errors == []
    assert run.steps == Run.open(run.path).steps


@pytest.mark.usefixtures("eager_switching")
def test_a_first_read_beside_a_writer_loses_no_entry(run: Run) -> None:
    for _ in range(40):
        opened = Run.open(run.path)
        last = max(opened.steps, default=0)
        opened = Run.open(run.path)  # its index is not read yet
        start = threading.Barrier(2)

        def write(opened: Run = opened, step: int = last + 1) -> None:
            start.wait()  # noqa: B023  # the thread ends within the loop
            opened.add_entry(entry(step))

        writer = threading.Thread(target=write)
        writer.start()
        start.wait()
        _ = opened.steps
        writer.join()
        assert opened.steps == tuple(range(1, last + 2))
