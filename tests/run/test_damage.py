"""Damaged files of a run: one sentence with file, line and cause, and nothing skipped silently."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from backtrack.arena.attempts import Attempts
from backtrack.arena.driver import read_arena
from backtrack.errors import BacktrackError, RunError
from backtrack.evaluate.vllm.adapters import why_not_in_vllm
from backtrack.path.models.loading import is_quantized
from backtrack.point import Point
from backtrack.records import BaseModelReference, CheckpointEntry, Measurement, Record
from backtrack.records.selection import BaselineMeasurement
from backtrack.report.geometry.section import read_geometry
from backtrack.run.directory import Run
from backtrack.run.files import append_line, read_lines, read_record
from backtrack.selection.search.begun import begun_search
from backtrack.train.trainers.resume import newest_checkpoint, read_end
from tests.selection import fakes

DAMAGED_TEXT = {
    "empty": (b"", "it ends inside a value"),
    "truncated": (b'{"name": "a', "it ends inside a string"),
    "byte order mark": (b'\xef\xbb\xbf{"a": 1}', "it starts with a byte order mark"),
    "deep nesting": (b'{"a": ' + b"[" * 3000 + b"]" * 3000 + b"}", "it is nested too deeply"),
    "5,000 digits": (b'{"a": ' + b"1" * 5000 + b"}", "a number has too many digits"),
    "lone surrogate": (b'{"a": "\\ud800"}', "a lone surrogate"),
    "second half of a pair": (b'{"a": "\\udc00"}', "a lone surrogate"),
    "not UTF-8": (b'{"a": "\xff"}', "it is not UTF-8"),
    "zeros": (b"\0" * 64, "expected value"),
}
WRONG_TYPES = {
    "null": (b"null", "Input should be .*, got None"),
    "number": (b"3", "Input should be .*, got 3"),
    "list": (b"[1]", r"Input should be .*, got \[1\]"),
}


def _sweep(folder: Path) -> object:
    run = Run.open(folder)
    run.selection = lambda: SimpleNamespace(created="now")  # type: ignore[assignment, method-assign, return-value]
    return run.sweep()


READERS: dict[str, Callable[[Path], object]] = {
    "manifest.json": Run.open,
    "recipe.resolved.json": Run.open,
    "recipe.choosing.json": lambda folder: Run.open(folder).choosing,
    "selection.json": lambda folder: Run.open(folder).selection(),
    "sweep.json": _sweep,
    "search.json": lambda folder: begun_search(Run.open(folder), ""),
    "arena.json": read_arena,
    "attempts.json": lambda folder: Attempts(folder / "attempts.json"),
    "diagnosis.json": read_geometry,
    "trainer/end.json": lambda folder: read_end(Run.open(folder)),
    "adapter_config.json": why_not_in_vllm,
    "config.json": lambda folder: is_quantized(BaseModelReference(model=str(folder))),
}


@pytest.mark.parametrize("damage", DAMAGED_TEXT | WRONG_TYPES)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_with_its_cause(tmp_path: Path, name: str, damage: str) -> None:
    run = fakes.make_run(tmp_path / "run")
    path = run.path / name
    path.parent.mkdir(exist_ok=True)
    content, cause = (DAMAGED_TEXT | WRONG_TYPES)[damage]
    path.write_bytes(content)
    with pytest.raises(BacktrackError, match=rf"{name} is damaged: .*{cause}") as caught:
        READERS[name](run.path)
    assert len(str(caught.value)) < 400 + len(str(path))
    assert "\n" not in str(caught.value)


LINES: dict[str, type[Record]] = {
    "measurements.jsonl": Measurement,
    "baselines.jsonl": BaselineMeasurement,
    "trajectory/index.jsonl": CheckpointEntry,
}


@pytest.mark.parametrize("damage", DAMAGED_TEXT)
def test_damaged_lines_are_counted_and_said_once(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run, (first, last) = _measured_run(tmp_path)
    content, cause = DAMAGED_TEXT[damage]
    if damage == "empty":
        content, cause = b'{"point": ', "it ends inside a value"
    path = run.path / "measurements.jsonl"
    path.write_bytes(b"\n".join([first, content, content, last, b""]))
    with caplog.at_level(logging.WARNING):
        assert len(run.measurements()) == 2
        assert len(Run.open(run.path).measurements()) == 2
    assert len(caplog.messages) == 1
    assert f"{path}, line 2 is truncated or damaged: {cause}" in caplog.text
    assert "2 damaged lines were skipped" in caplog.text
    assert "line 1 column" not in caplog.text


@pytest.mark.parametrize("damage", WRONG_TYPES)
@pytest.mark.parametrize("name", LINES)
def test_a_line_of_another_type_is_named(tmp_path: Path, name: str, damage: str) -> None:
    content, cause = WRONG_TYPES[damage]
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"\n\n" + content + b"\n")
    with pytest.raises(RunError, match=rf"lines\.jsonl, line 3 is damaged: .*{cause}"):
        list(read_lines(path, LINES[name]))


def test_a_torn_last_line_is_normal_and_the_next_append_removes_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, (first, last) = _measured_run(tmp_path)
    path = run.path / "measurements.jsonl"
    path.write_bytes(first + b"\n" + last[:40])
    with caplog.at_level(logging.WARNING):
        assert len(run.measurements()) == 1
        append_line(path, last.decode())
        assert len(run.measurements()) == 2
    assert caplog.messages == []
    assert path.read_bytes() == first + b"\n" + last + b"\n"


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    run, (first, last) = _measured_run(tmp_path)
    path = run.path / "measurements.jsonl"
    path.write_bytes(first)
    append_line(path, last.decode())
    assert path.read_bytes() == first + b"\n" + last + b"\n"


def test_a_damaged_trainer_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    for damage, (content, _) in (DAMAGED_TEXT | WRONG_TYPES).items():
        checkpoint = tmp_path / damage / "checkpoint-5"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_bytes(content)
        assert newest_checkpoint(checkpoint.parent) is None


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"missing\.json cannot be read: No such file"):
        read_record(tmp_path / "missing.json", dict[str, int])
    with pytest.raises(RunError, match="cannot be read: Is a directory"):
        list(read_lines(tmp_path, Measurement))


def _measured_run(tmp_path: Path) -> tuple[Run, list[bytes]]:
    """A run with two measurements, and their lines."""
    run = fakes.make_run(tmp_path / "run")
    target, _ = fakes.pair()
    for step in (0, 1):
        point = Point.base() if step == 0 else run.final
        run.record(fakes.measured(target, point, target.item_ids[:4]))
    lines = (run.path / "measurements.jsonl").read_bytes().split(b"\n")[:-1]
    assert all(json.loads(line) for line in lines)
    return run, lines
