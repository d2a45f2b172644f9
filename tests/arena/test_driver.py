"""A small arena from recipe to table: trained, killed and resumed, failures isolated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from backtrack.arena.driver import read_arena, run_arena
from backtrack.cli import app
from backtrack.errors import RecipeError
from backtrack.recipe.arena import load_arena
from backtrack.records.arena import Arena, Entrant
from backtrack.report.arena.figures import write_arena_figures
from backtrack.report.arena.rows import ranking
from backtrack.run.directory import Run
from tests.models import make_base

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("study_in_memory"),
]

RECIPE = """\
name: small
base: base
seeds: {seeds}
data: {{train: train.jsonl}}
sft: {{max_steps: 8, per_device_train_batch_size: 4, learning_rate: 5.0e-3}}
trajectory: {{every_steps: 4}}
diagnose: {{num_prompts: 8}}
entrants:
{entrants}
objectives:
  - {{kind: examples, role: target, path: sums.jsonl, score: nll}}
  - {{kind: examples, role: general, path: words.jsonl, score: nll}}
search:
  {{trials: 0, checkpoints: 1, alphas: [0.5], racing: {{shares: []}},
   items: {{selection: 10, report: 10}}}}
"""
LORA = "  - {name: lora, method: {kind: lora, r: 2, target_modules: all-linear}}\n"
OFT = "  - {name: oft, method: {kind: oft, oft_block_size: 8, target_modules: all-linear}}\n"
DENSE = "  - {name: oft-dense, run: oft, placement: {form: merged, curve: line}}\n"
GRPO = """\
  - name: grpo
    method: {kind: lora, r: 2, target_modules: all-linear}
    sft: null
    grpo: {max_steps: 4, per_device_train_batch_size: 4, num_generations: 4,
           max_completion_length: 3}
    rewards: [{kind: numeric, answer: "{completion}"}]
"""
FULL = "  - {name: full, method: {kind: full}, sft: {learning_rate: 1.0e-3}}\n"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, data and two small objectives."""
    folder = tmp_path_factory.mktemp("arena")
    make_base(folder / "base")
    for name in ("sums", "words", "train"):
        rows = [{"prompt": f"{name} {i}:", "completion": f" {i * 7 % 11}"} for i in range(32)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def write(workspace: Path, entrants: str, seeds: str = "[0]", name: str = "small") -> Path:
    path = workspace / f"{name}.yaml"
    path.write_text(RECIPE.format(seeds=seeds, entrants=entrants).replace("small", name))
    return path


def run_in(workspace: Path, path: Path, *, retry: bool = False) -> Arena:
    return run_arena(load_arena(path, [f"output={workspace / 'runs'}"]), retry=retry)


def by_label(arena: Arena) -> dict[str, Entrant]:
    return {entrant.label: entrant for entrant in arena.entrants}


@pytest.fixture(scope="module")
def finished(workspace: Path) -> tuple[Path, Arena]:
    """An arena of two seeds; one entrant cannot be trained, one is another's in another form."""
    broken = "  - {name: broken, method: {kind: lora, target_modules: [nothing]}}\n"
    path = write(workspace, broken + LORA + OFT + DENSE, "[0, 1]")
    return path, run_in(workspace, path)


def test_entrants_are_measured_under_one_rule_and_a_failed_one_says_why(workspace, finished):
    _, arena = finished
    states = {entrant.label: entrant.state for entrant in arena.entrants}
    assert states.pop("broken (seed 0)") == states.pop("broken (seed 1)") == "failed"
    assert set(states.values()) == {"measured"}
    assert len(states) == 6
    assert "nothing" in str(by_label(arena)["broken (seed 0)"].failure)
    assert arena == read_arena(workspace / "runs" / "small")
    corner, reach = arena.corner, arena.reach
    assert corner is not None
    assert reach is not None
    assert all(c < r for c, r in zip(corner, reach, strict=True))
    for entrant in arena.entrants:
        if entrant.hypervolume is not None:
            assert 0 <= entrant.hypervolume.estimate <= 1
    assert {o.name for o in arena.objectives} == {"sums", "words"}


def test_the_box_runs_from_the_worst_end_to_the_best_score_of_any_entrant(finished):
    arena = finished[1]
    for i, role in enumerate(("target", "general")):
        every = [getattr(p, role) for e in arena.entrants for p in e.points if p.share == 1]
        ends = [
            getattr(p, role)
            for e in arena.entrants
            for p in e.points
            if p.point.is_base or p.point == e.final
        ]
        assert arena.reach[i] == pytest.approx(max(every))
        assert arena.corner[i] == pytest.approx(min(ends))


def test_trainable_parameters_are_counted(finished):
    found = by_label(finished[1])
    width, inner, half = 32, 64, 16
    pairs = [(width, width), (width, half), (width, half), (width, width)]
    pairs += [(width, inner), (width, inner), (inner, width)]
    assert found["lora (seed 0)"].num_trainable == 2 * sum(2 * (a + b) for a, b in pairs)
    blocks = 2 * sum(a // 8 for a, _ in pairs)
    assert found["oft (seed 0)"].num_trainable == blocks * 8 * 7 // 2


def test_one_trajectory_is_measured_in_two_forms(finished):
    found = by_label(finished[1])
    native, dense = found["oft (seed 0)"], found["oft-dense (seed 0)"]
    assert (native.form, native.curve) == ("attached", "native")
    assert (dense.form, dense.curve) == ("merged", "line")
    ends = [next(p for p in e.points if p.point == e.final) for e in (native, dense)]
    assert ends[0].target == pytest.approx(ends[1].target, rel=1e-3)
    assert not dense.geometry, "the same geometry is counted once"
    assert {f.name for f in finished[1].forgetting} == {
        f"{name} (seed {seed})" for name in ("lora", "oft") for seed in (0, 1)
    }


def test_seeds_share_one_row_of_the_ranking(finished):
    arena = finished[1]
    rows = {row.name: row for row in arena.ranking}
    assert list(rows) == ["broken", "lora", "oft", "oft-dense"]
    assert (rows["broken"].seeds, rows["broken"].num_failed) == ((), 2)
    lora = rows["lora"]
    assert lora.seeds == (0, 1)
    by_name = {
        name: [e.report["final"].target for e in arena.entrants if e.name == name]
        for name in ("lora", "oft", "oft-dense")
    }
    pooled = sum(np.var([v.estimate for v in values]) * 2 for values in by_name.values()) / 3
    seeds = stats.t.ppf(0.975, 3) * (pooled / 2) ** 0.5
    own = by_name["lora"]
    assert lora.final_target is not None
    assert lora.final_target.estimate == pytest.approx(sum(v.estimate for v in own) / 2)
    items = sum(v.high - v.estimate for v in own) / 2
    above = lora.final_target.high - lora.final_target.estimate
    assert above == pytest.approx((items**2 + seeds**2) ** 0.5, rel=1e-6)


def test_a_second_run_measures_nothing_and_gives_the_same(workspace, finished):
    path, first = finished
    before = {p: p.stat().st_mtime_ns for p in (workspace / "runs").rglob("measurements.jsonl")}
    again = run_in(workspace, path)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert again.model_copy(update={"created": first.created}) == first


def test_its_table_and_its_figures(workspace, finished):
    heads, rows = ranking(finished[1])
    assert [row[0] for row in rows] == [
        "base", "broken", "lora (2 seeds)", "oft (2 seeds)", "oft-dense (2 seeds)",
    ]  # fmt: skip
    assert len(heads) == len(rows[1])
    assert rows[1][2] == "failed"
    files = write_arena_figures(workspace / "runs" / "small", finished[1])
    names = {"frontiers", "paths", "forgetting"}
    assert {file.name for file in files} == {f"arena-{name}.png" for name in names}


def test_the_command_prints_the_table_again_and_draws_each_entrant(workspace, finished, capsys):
    drawn = {"lora-seed0"}
    for entrant in finished[1].entrants:
        run = workspace / "runs" / "small" / entrant.run
        if run.is_dir() and run.name not in drawn:
            (run / "report.html").write_text("newer than the selection")
    app(args=["arena", str(workspace / "runs" / "small")], standalone_mode=False)
    printed = capsys.readouterr().out
    for word in ("oft-dense", "hypervolume", "failed", "goes with forgetting", "arena-frontiers"):
        assert word in printed, word
    pages = (workspace / "runs" / "small" / "runs").glob("*/report.html")
    assert {page.parent.name for page in pages if page.stat().st_size > 1000} == drawn
    app(args=["arena", str(workspace / "runs" / "small"), "--json"], standalone_mode=False)
    shown = Arena.model_validate_json(capsys.readouterr().out)
    assert shown == read_arena(workspace / "runs" / "small")


def test_a_killed_arena_resumes_inside_the_entrant(workspace):
    path = write(workspace, LORA + FULL + GRPO, name="killed")
    longer = [f"output={workspace / 'runs'}", "sft.max_steps=24"]
    code = (
        "from pathlib import Path\n"
        "from backtrack.arena.driver import run_arena\n"
        "from backtrack.recipe.arena import load_arena\n"
        f"run_arena(load_arena(Path({str(path)!r}), {longer!r}))"
    )
    index = workspace / "runs/killed/runs/lora/trajectory/index.jsonl"
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        while process.poll() is None and not (index.is_file() and index.read_text()):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    attempts = json.loads((workspace / "runs/killed/attempts.json").read_text())
    assert attempts == {"lora": {"deaths": 1, "recorded_bytes": 0}}
    saved_at = (workspace / "runs/killed/runs/lora/trajectory/step-00000004").stat().st_mtime_ns
    arena = run_arena(load_arena(path, longer))
    assert [entrant.state for entrant in arena.entrants] == ["measured"] * 3
    assert [entrant.paradigm for entrant in arena.entrants] == ["sft", "sft", "grpo"]
    full = by_label(arena)["full (seed 0)"]
    assert full.num_trainable == full.num_parameters
    run = Run.open(workspace / "runs/killed/runs/lora")
    assert run.steps == tuple(range(4, 25, 4))
    assert run.folder(4).stat().st_mtime_ns == saved_at, "what was saved is not trained again"


def test_an_entrant_in_which_the_process_died_twice_is_skipped(workspace, finished):
    path, _ = finished
    run = workspace / "runs/small/runs/lora-seed0"
    names = ("trajectory/index.jsonl", "measurements.jsonl", "diagnosis.jsonl")
    recorded = sum((run / name).stat().st_size for name in names)

    def died_at(recorded_bytes: int) -> dict[str, Entrant]:
        attempts = {"lora-seed0": {"deaths": 2, "recorded_bytes": recorded_bytes}}
        (workspace / "runs/small/attempts.json").write_text(json.dumps(attempts))
        return by_label(run_in(workspace, path))

    assert died_at(recorded - 1)["lora (seed 0)"].state == "measured", "it has made progress since"
    skipped = died_at(recorded)
    assert "died 2 times while it ran" in str(skipped["lora (seed 0)"].failure)
    assert skipped["oft (seed 0)"].state == "measured"
    tried = by_label(run_in(workspace, path, retry=True))
    assert tried["lora (seed 0)"].state == "measured"


MISTAKES = """\
name: wrong
base: base
entrants:
  - {name: a, method: {kind: lora}, objectives: []}
  - {name: a, method: {kind: full}, sfft: {max_steps: 3}}
  - {name: c}
data: {train: train.jsonl}
objectives:
  - {kind: examples, role: target, path: sums.jsonl}
search: {trails: 3}
"""


def test_every_mistake_of_an_arena_is_listed_once(workspace):
    (workspace / "wrong.yaml").write_text(MISTAKES)
    with pytest.raises(RecipeError) as caught:
        load_arena(workspace / "wrong.yaml")
    text = "\n".join(caught.value.faults)
    assert "the name 'a' is given twice" in text
    assert "entrant a: 'objectives' is the same for all entrants" in text
    assert "entrant c: give it a `method`" in text
    assert "'sft'" in text
    assert text.count("'trials'") == 1, text
