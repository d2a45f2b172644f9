"""Workers that share a search through the run's own study or a real PostgreSQL."""

from __future__ import annotations

import collections
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backtrack.errors import RunError, UsageError
from backtrack.records import Measurement
from backtrack.run.directory import Run
from backtrack.selection.choice.select import select
from backtrack.selection.search.driver import search
from backtrack.selection.search.workers import search_together
from tests.selection.fakes import FakeEngine, make_recipe, make_run, pair
from tests.selection.postgres import find_binaries, postgresql

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A PostgreSQL server for this module."""
    if find_binaries() is None:
        pytest.skip("needs PostgreSQL's initdb and pg_ctl")
    with postgresql() as url:
        yield url


def start(run: Path, storage: str = "", seconds: float = 0.02) -> subprocess.Popen[str]:
    script = str(Path(__file__).with_name("search_in_process.py"))
    return subprocess.Popen(
        [sys.executable, script, str(run), storage, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def times_measured(measurements: list[Measurement]) -> list[int]:
    """How often each point, objective and rung was measured."""
    keys = [(m.point, m.objective.name, m.item_ids) for m in measurements]
    return list(collections.Counter(keys).values())


def front(run: Run) -> dict[str, tuple[float, float]]:
    """Points of the front with their scores; `select` reads recorded measurements only."""
    selection = select(run, placement=FakeEngine(), objectives=pair(), weight=0.5).selection  # type: ignore[arg-type]
    return {str(c.point): (c.target, c.general) for c in selection.candidates if c.is_on_front}


def test_three_machines_share_a_postgresql_and_one_is_killed_while_measuring(
    tmp_path: Path, server: str
):
    """Each worker has its own folder: they share nothing but the database."""
    recipe = make_recipe(patience_seconds=4, trials=2)
    alone = make_run(tmp_path / "alone", recipe)
    search(alone, placement=FakeEngine(), objectives=pair())  # type: ignore[arg-type]
    make_run(tmp_path / "machine0", recipe)
    for i in (1, 2):
        shutil.copytree(tmp_path / "machine0", tmp_path / f"machine{i}")

    victim = start(tmp_path / "machine0", server, seconds=60)
    assert victim.stdout is not None
    assert victim.stdout.readline().startswith("measuring")
    others = [start(tmp_path / f"machine{i}", server) for i in (1, 2)]
    victim.send_signal(signal.SIGKILL)
    for other in others:
        _, errors = other.communicate(timeout=120)
        assert other.returncode == 0, errors
    victim.communicate()

    runs = [Run.open(tmp_path / f"machine{i}") for i in (1, 2)]
    records = [run.measurements() for run in runs]
    assert {m.model_dump_json() for m in records[0]} == {m.model_dump_json() for m in records[1]}
    assert max(times_measured(records[0])) == 1
    anchors = {m.point for m in alone.measurements() if m.origin == "anchor"}
    assert anchors <= {m.point for m in records[0]}
    assert len({m.point for m in records[0]}) == len({m.point for m in alone.measurements()})
    expected, found = front(alone), front(runs[0])
    shared = expected.keys() & found.keys()
    assert {"base", "step 40 alpha 1"} & expected.keys() <= shared
    assert all(found[point] == expected[point] for point in shared)


def test_workers_of_one_machine_share_the_runs_own_study(tmp_path: Path):
    run = make_run(tmp_path / "run", make_recipe(trials=2))
    workers = [start(run.path) for _ in range(3)]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    measurements = Run.open(run.path).measurements()
    assert max(times_measured(measurements)) == 1
    with pytest.raises(AssertionError):
        search(run, placement=NeverPlaced(), objectives=pair(), trials=99)  # type: ignore[arg-type]
    assert search(run, placement=NeverPlaced(), objectives=pair()) == measurements  # type: ignore[arg-type]


class NeverPlaced(FakeEngine):
    """Fails when placed."""

    def place(self, point: object) -> None:
        raise AssertionError(f"placed at {point}")


def test_a_storage_that_does_not_answer_is_named_without_its_password(tmp_path: Path):
    run = make_run(tmp_path / "run")
    url = "postgresql://user:secret@127.0.0.1:1/nothing"
    with pytest.raises(RunError, match="does not answer") as caught:
        search(run, placement=FakeEngine(), objectives=pair(), storage=url)  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_a_storage_that_is_not_a_url_is_refused(tmp_path: Path):
    run = make_run(tmp_path / "run")
    with pytest.raises(UsageError, match="not a database URL"):
        search(run, placement=FakeEngine(), objectives=pair(), storage="nowhere")  # type: ignore[arg-type]


def test_workers_that_all_fail_say_why(tmp_path: Path):
    run = make_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"none of the 2 workers finished.* --recipe FILE"):
        search_together(run, 2)


def test_no_process_list_shows_the_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[tuple[list[str], dict[str, str]]] = []
    real = subprocess.Popen

    def recording(command: list[str], **given: Any) -> Any:
        started.append((command, given["env"]))
        return real(command, **given)

    monkeypatch.setattr("backtrack.selection.search.workers.subprocess.Popen", recording)
    url = "postgresql://user:secret@127.0.0.1:1/none"
    with pytest.raises(RunError):
        search_together(make_run(tmp_path / "run"), 1, storage=url)
    ((command, environment),) = started
    assert not any("secret" in argument for argument in command)
    assert environment["BACKTRACK_STORAGE"] == url
