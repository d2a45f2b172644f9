"""Entrants prepared by tasks of a Ray cluster rank as in one process; see `tests.clusters`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from backtrack.arena.driver import read_arena, run_arena
from backtrack.recipe import ClusterSection
from backtrack.recipe.arena import load_arena
from tests.clusters import (
    ROOT,
    Fault,
    first_process,
    lose_a_node_that_measures,
    processes,
    require_ended,
    three_nodes,
)
from tests.commands import hear_interrupts
from tests.models import make_base
from tests.selection.watched import FOLDER, SECONDS

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.recipe.arena import ArenaRecipe
    from backtrack.records.arena import Arena

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

RECIPE = """\
name: small
base: base
data: {train: train.jsonl}
sft: {max_steps: 4, per_device_train_batch_size: 4, learning_rate: 5.0e-3}
trajectory: {every_steps: 2}
diagnose: null
entrants:
  - {name: broken, method: {kind: lora, target_modules: [nothing]}}
  - {name: lora, method: {kind: lora, r: 2, target_modules: all-linear}}
  - {name: oft, method: {kind: oft, oft_block_size: 8, target_modules: all-linear}}
  - {name: oft-dense, run: oft, placement: {form: merged, curve: line}}
objectives:
  - {kind: python, role: target, function: "tests.selection.watched:likely", items: 40}
  - {kind: python, role: general, function: "tests.selection.watched:unlikely", items: 40}
search:
  {trials: 0, checkpoints: 1, alphas: [0.5], racing: {shares: []},
   items: {selection: 20, report: 20}}
"""
INCIDENTAL: Any = {
    "created": True, "command": True, "settings": True,
    "entrants": {"__all__": {"train_seconds", "measure_seconds"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe, beside a base and data."""
    folder = tmp_path_factory.mktemp("arena")
    make_base(folder / "base")
    rows = [{"prompt": f"{i}:", "completion": f" {i * 7 % 11}"} for i in range(32)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "small.yaml").write_text(RECIPE)
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def expected(file: Path) -> Any:
    """What one process records."""
    return told(run_arena(load_arena(file, [f"output={file.parent / 'alone'}"])))


def told(arena: Arena) -> Any:
    """The record, without times."""
    return arena.model_dump(mode="json", exclude=INCIDENTAL)


def by_three(file: Path, folder: Path, seconds: float) -> ArenaRecipe:
    """The arena by three tasks that are slow to measure, and say by which processes."""
    pids = folder / "pids"
    pids.mkdir()
    variables = {FOLDER: str(pids), SECONDS: str(seconds), "OMP_NUM_THREADS": "1"}
    settings = [f"output={folder / 'runs'}", f"cluster.runtime_env={{env_vars: {variables}}}"]
    recipe = load_arena(file, settings)
    return replace(recipe, cluster=recipe.cluster.model_copy(update={"actors": 3}))


def test_entrants_rank_as_in_one_process_though_a_node_is_lost(
    file: Path, expected: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, pids = by_three(file, tmp_path, 0.05), tmp_path / "pids"
    told_steps: list[str] = []
    with three_nodes() as cluster:
        fault = Fault(pids, lambda _: lose_a_node_that_measures(cluster, pids))
        arena = run_arena(recipe, on_progress=lambda _done, _of, what: told_steps.append(what))
        fault.join()
    assert "its process died" in caplog.text
    assert told(arena) == expected
    assert {e.name: e.state for e in arena.entrants} == {
        "broken": "failed", "lora": "measured", "oft": "measured", "oft-dense": "measured",
    }  # fmt: skip
    assert len(processes(pids)) == 4, "lora, oft and oft-dense, and the one that died"
    assert {step.partition(":")[0] for step in told_steps} == {e.name for e in arena.entrants}
    assert read_arena(tmp_path / "runs" / "small") == arena


def test_tasks_end_with_a_driver_that_is_stopped_and_the_next_one_goes_on(
    file: Path, expected: Any, tmp_path: Path
) -> None:
    recipe = by_three(file, tmp_path, 0.5)
    environment = {
        key: str(value) for key, value in recipe.cluster.runtime_env["env_vars"].items()
    }
    command = [sys.executable, "-m", "backtrack", "arena", str(file), "--workers", "2", "--quiet"]
    with subprocess.Popen(
        [*command, "--set", f"output={tmp_path / 'runs'}"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        preexec_fn=hear_interrupts,
    ) as driver:  # fmt: skip
        first_process(tmp_path / "pids")
        driver.send_signal(signal.SIGTERM)
        out, _ = driver.communicate(timeout=180)
    assert driver.returncode == 143, out
    require_ended(processes(tmp_path / "pids"), 20)
    assert json.loads((tmp_path / "runs/small/attempts.json").read_text()) == {}
    assert told(run_arena(replace(recipe, cluster=ClusterSection()))) == expected
