"""Actors of real Ray clusters measure what one process measures, whoever is killed.

    unshare -n sh -c 'ip link set lo up; exec python -m pytest -n 0 -m ray'

keeps Ray on loopback, as `.ci/run` does; without it Ray listens on the machine's own address.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from peft import LoraConfig

from backtrack.recipe import ClusterSection, Recipe
from backtrack.run.directory import Run
from backtrack.selection.choice.select import select
from tests.commands import hear_interrupts
from tests.models import make_base, make_peft_run
from tests.selection.watched import FOLDER, SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backtrack.records import Measurement

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).resolve().parents[2]
MODULE = "tests.selection.watched"
INCIDENTAL = {"created", "command", "run"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes of one CPU each, and this process connected to them."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = str(ROOT)  # the nodes' processes inherit it
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A search of two objectives by the functions in `watched`."""
    base = make_base(tmp_path_factory.mktemp("base"))
    objectives = [
        {"kind": "python", "role": role, "function": f"{MODULE}:{name}", "items": 40}
        for role, name in (("target", "likely"), ("general", "unlikely"))
    ]
    search = {
        "trials": 3, "checkpoints": 1, "alphas": [0.25, 0.5, 0.75], "sampler": "random",
        "racing": {"shares": [0.5]}, "items": {"selection": 20, "report": 10},
    }  # fmt: skip
    values = {"name": "mine", "base": str(base), "objectives": objectives, "search": search}
    return Recipe.model_validate(values)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Run:
    """What one process measures and chooses."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
    run = make_peft_run(folder, Path(recipe.base.model), config)
    shutil.copytree(folder, folder.with_name("untouched"))
    select(run, recipe=recipe)
    return Run.open(folder)


@pytest.fixture
def run(tmp_path: Path, expected: Run) -> Run:
    """The same run, of which nothing is measured yet."""
    folder = tmp_path / "run"
    shutil.copytree(expected.path.with_name("untouched"), folder)
    return Run.open(folder)


def section(folder: Path, seconds: float, **given: Any) -> ClusterSection:
    """Actors whose process ids appear in a folder when they measure."""
    folder.mkdir(exist_ok=True)
    variables = {FOLDER: str(folder), SECONDS: str(seconds)}
    return ClusterSection(actors=3, runtime_env={"env_vars": variables}, **given)


def chosen(run: Run) -> Any:
    """The selection without its time."""
    selection = run.selection()
    assert selection is not None
    return selection.model_dump(exclude=INCIDENTAL)


def scores(run: Run) -> set[Any]:
    """All that was measured, without times and in no order."""

    def of(m: Measurement) -> Any:
        return m.point, m.objective.name, m.split, m.item_ids, m.scores, m.origin, m.setting

    measured = [of(m) for m in run.measurements()]
    assert len(measured) == len(set(measured))  # nothing is measured twice
    return set(measured)


def first_process(folder: Path, *, other_than: set[str] | None = None) -> int:
    """The id of a process that measures, once there is one."""
    deadline = time.monotonic() + 300  # actors load their models on a busy machine
    while time.monotonic() < deadline:
        names = {path.name for path in folder.iterdir()} - (other_than or set())
        if names:
            return int(min(names))
        time.sleep(0.05)
    raise AssertionError("nothing was measured")


def require_ended(pids: set[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while left := {pid for pid in pids if _is_alive(pid)}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


class Fault:
    """Does something in a thread once something is measured."""

    def __init__(self, folder: Path, action: Any) -> None:
        import threading

        self._folder, self._action = folder, action
        self.is_done = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._action(first_process(self._folder))
        self.is_done = True

    def join(self) -> None:
        self._thread.join()
        assert self.is_done


def test_actors_measure_and_choose_bit_for_bit_what_one_process_does(
    cluster: Any, run: Run, recipe: Recipe, expected: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "pids"
    select(run, recipe=recipe, cluster=section(folder, 0.02))
    assert len(list(folder.iterdir())) == 3
    assert scores(run) == scores(expected)
    assert chosen(run) == chosen(expected)


def test_what_a_killed_actor_measured_is_measured_by_another(
    cluster: Any, run: Run, recipe: Recipe, expected: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "pids"
    settings = section(folder, 0.1)
    fault = Fault(folder, lambda pid: os.kill(pid, signal.SIGKILL))
    select(run, recipe=recipe, cluster=settings)
    fault.join()
    assert (scores(run), chosen(run)) == (scores(expected), chosen(expected))


def test_a_search_goes_on_when_a_node_is_removed(
    cluster: Any, run: Run, recipe: Recipe, expected: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "pids"
    settings = section(folder, 0.1)
    node = next(iter(cluster.worker_nodes))
    fault = Fault(folder, lambda _: cluster.remove_node(node))
    select(run, recipe=recipe, cluster=settings)
    fault.join()
    cluster.add_node(num_cpus=1)
    assert (scores(run), chosen(run)) == (scores(expected), chosen(expected))


def test_a_run_that_a_node_does_not_see_is_sent_to_it(
    cluster: Any, run: Run, recipe: Recipe, expected: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backtrack.selection.measurers import ray_executor

    monkeypatch.setattr(ray_executor, "run_digest", lambda _: "of a run that is nowhere else")
    select(run, recipe=recipe, cluster=ClusterSection(actors=2))
    assert (scores(run), chosen(run)) == (scores(expected), chosen(expected))


@pytest.mark.parametrize(
    ("stop", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_actors_end_with_a_driver_that_is_stopped_and_the_next_one_goes_on(
    cluster: Any,
    run: Run,
    recipe: Recipe,
    expected: Run,
    tmp_path: Path,
    stop: signal.Signals,
    code: int,
) -> None:
    """The driver starts a Ray of its own, though another cluster runs on this machine."""
    folder = tmp_path / "pids"
    settings = section(folder, 0.2).model_copy(update={"actors": 2})
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.model_copy(update={"cluster": settings}).model_dump_json())
    command = [sys.executable, "-m", "backtrack", "select", str(run.path), "--recipe", str(file)]
    with subprocess.Popen(
        [*command, "--quiet", "--trust-code"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        preexec_fn=hear_interrupts,
    ) as driver:  # fmt: skip
        first_process(folder)
        driver.send_signal(stop)
        out, _ = driver.communicate(timeout=180)
    assert driver.returncode == code, out
    require_ended({int(path.name) for path in folder.iterdir()}, 20)
    select(run, recipe=recipe)
    assert (scores(run), chosen(run)) == (scores(expected), chosen(expected))
