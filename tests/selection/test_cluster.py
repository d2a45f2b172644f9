"""Actors of a Ray cluster measure what one process does, whoever dies; see `tests.clusters`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from peft import LoraConfig

from backtrack.errors import EngineError
from backtrack.recipe import ClusterSection, Recipe
from backtrack.run.directory import Run
from backtrack.selection.choice.select import select
from backtrack.selection.search.driver import search
from tests.clusters import (
    ROOT,
    Fault,
    add_node,
    first_process,
    processes,
    require_ended,
    three_nodes,
)
from tests.commands import hear_interrupts
from tests.models import make_base, make_peft_run
from tests.selection.watched import FOLDER, SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backtrack.records import Measurement

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

MODULE = "tests.selection.watched"
INCIDENTAL = {"created", "command", "run"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with three_nodes() as nodes:
        yield nodes


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
    text = selection.model_dump_json(exclude=INCIDENTAL)
    return text.replace(str(run.path), "RUN")  # notes advise commands


def scores(run: Run) -> set[Any]:
    """All that was measured, without times and in no order."""

    def of(m: Measurement) -> Any:
        return m.point, m.objective.name, m.split, m.item_ids, m.scores, m.origin, m.setting

    measured = [of(m) for m in run.measurements()]
    assert len(measured) == len(set(measured))  # nothing is measured twice
    return set(measured)


def test_actors_measure_and_choose_bit_for_bit_what_one_process_does(
    cluster: Any, run: Run, recipe: Recipe, expected: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "pids"
    select(run, recipe=recipe, cluster=section(folder, 0.02))
    assert len(processes(folder)) == 3
    assert scores(run) == scores(expected)
    assert chosen(run) == chosen(expected)


def test_what_a_killed_actor_measured_is_measured_by_the_one_that_replaces_it(
    cluster: Any, run: Run, recipe: Recipe, expected: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "pids"
    # One, so that nobody else can measure before its replacement is ready.
    settings = section(folder, 0.02, address="auto").model_copy(update={"actors": 1})
    fault = Fault(folder, lambda pid: os.kill(pid, signal.SIGKILL))
    select(run, recipe=recipe, cluster=settings)
    fault.join()
    assert len(processes(folder)) == 2
    assert (scores(run), chosen(run)) == (scores(expected), chosen(expected))


def test_an_actor_of_two_gpus_sees_these_two(
    cluster: Any, run: Run, recipe: Recipe, tmp_path: Path
) -> None:
    """Ray believes what it is told of GPUs: here are none, and the model is on the CPU."""
    folder = tmp_path / "pids"
    node = add_node(cluster, num_cpus=2, num_gpus=4)
    settings = section(folder, 0.02, gpus_per_actor=2).model_copy(update={"actors": 2})
    search(run, trials=0, recipe=recipe, cluster=settings)
    cluster.remove_node(node)
    seen = [file.read_text() for file in folder.iterdir()]
    assert sorted(",".join(seen).split(",")) == ["0", "1", "2", "3"]


def test_an_actor_that_lacks_a_package_says_which(
    cluster: Any, run: Run, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "only_here", ModuleType("only_here"))
    kind: Any = type("Own", (Recipe,), {"__module__": "only_here"})
    monkeypatch.setattr(sys.modules["only_here"], "Own", kind, raising=False)
    own = kind.model_validate(recipe.model_dump())
    with pytest.raises(EngineError, match=r"no actor could begin: .*No module named 'only_here'"):
        select(run, recipe=own, cluster=ClusterSection(actors=2))


def test_a_search_goes_on_when_a_node_is_removed(
    cluster: Any, run: Run, recipe: Recipe, expected: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "pids"
    settings = section(folder, 0.1)
    node = next(iter(cluster.worker_nodes))
    fault = Fault(folder, lambda _: cluster.remove_node(node))
    select(run, recipe=recipe, cluster=settings)
    fault.join()
    add_node(cluster, num_cpus=1)
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
    require_ended(processes(folder), 20)
    select(run, recipe=recipe)
    assert (scores(run), chosen(run)) == (scores(expected), chosen(expected))
