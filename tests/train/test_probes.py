"""Probe evaluations during training: recorded, and without effect on what is trained."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState

from backtrack.errors import ObjectiveError, UsageError
from backtrack.evaluate.objectives.objective import Objective
from backtrack.records import ObjectiveInfo
from backtrack.run.directory import Run
from backtrack.run.files import read_lines
from backtrack.selection.choice.select import select
from backtrack.train.trainers.probes import (
    PROBE_FILE,
    ProbeCallback,
    ProbeEvaluation,
    require_one_unit,
    without_divergence,
)
from backtrack.train.trainers.resume import read_end
from backtrack.train.trainers.train import TrainingProgress, train
from tests.train.conftest import MakeRecipe


def objectives(folder: Path) -> list[dict[str, Any]]:
    """What any training on sums loses: likelihood of letters; and what it gains."""
    lines = {
        "words": [
            f"{a} and {b}" for a in ["cat", "dog", "sun", "sea", "sky", "hat"] for b in "abcdef"
        ],
        "numbers": [f"{i} + {i + 1} = {2 * i + 1}" for i in range(36)],
    }
    for name, texts in lines.items():
        records = [{"prompt": t[:5], "completion": t[5:]} for t in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    return [
        {"kind": "examples", "role": role, "name": name, "path": str(folder / f"{name}.jsonl"),
         "score": "nll"}
        for role, name in [("target", "numbers"), ("general", "words")]
    ]  # fmt: skip


def probes(run: Run) -> list[ProbeEvaluation]:
    return list(read_lines(run.path / PROBE_FILE, ProbeEvaluation))


def test_training_stops_when_the_lower_bound_of_the_general_drop_exceeds_the_limit(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    reports: list[TrainingProgress] = []
    watched = make_recipe(
        objectives=objectives(tmp_path),
        watch={"every_steps": 2, "items": 16, "max_general_drop": 0.05},
        sft={"max_steps": 40, "learning_rate": 3e-2},
        search={"items": {"selection": 18, "report": 18}, "trials": 0},
    )
    run = train(watched, on_progress=reports.append)
    end = read_end(run)
    assert end is not None
    assert end.reason is not None
    assert "general ability has fallen" in end.reason
    assert end.step < 40
    # The last step is saved, the evaluations are on disk, and resuming trains no further.
    assert run.steps[-1] == end.step
    evaluations = probes(run)
    assert [probe.step for probe in evaluations] == list(range(0, end.step + 1, 2))
    assert evaluations[0].drop.estimate == 0
    assert (
        evaluations[-1].drop_lower_bound
        > 0.05
        >= max(probe.drop_lower_bound for probe in evaluations[:-1])
    )
    assert evaluations[-1].general > evaluations[0].general, "nats a token rise as ability falls"
    assert reports[-1].probe == evaluations[-1]
    assert train(watched, resume=True).steps == run.steps
    # The evaluations use selection items, none of the report's.
    choice = select(run, weight=0.5)
    reported = {i for m in run.measurements() if m.split == "report" for i in m.item_ids}
    assert reported
    assert reported.isdisjoint(i for ids in evaluations[0].item_ids.values() for i in ids)
    assert choice.selection.report


def test_probe_evaluations_leave_training_unchanged_and_resume(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    method = {"kind": "lora", "r": 4, "lora_dropout": 0.2}
    watching = {"objectives": objectives(tmp_path), "watch": {"every_steps": 3, "items": 8}}

    def stop(progress: TrainingProgress) -> None:
        if progress.done == 5:
            raise KeyboardInterrupt

    plain = train(make_recipe(name="plain", method=method))
    uninterrupted = train(make_recipe(name="whole", method=method, **watching))
    cut = make_recipe(name="cut", method=method, **watching, sft={"save_steps": 4})
    with pytest.raises(KeyboardInterrupt):
        train(cut, on_progress=stop)
    resumed = train(cut, resume=True)
    assert {
        run.entry(7).sha256["adapter_model.safetensors"] for run in (uninterrupted, resumed)
    } == {plain.entry(7).sha256["adapter_model.safetensors"]}
    assert [probe.step for probe in probes(resumed)] == [0, 3, 6, 7]
    assert [probe.scores for probe in probes(resumed)] == [
        probe.scores for probe in probes(uninterrupted)
    ]


class _Coin(Objective):
    """An objective whose items are correct at random, with a chance for each evaluation."""

    def __init__(self, role: Any, chance: list[float], seed: int) -> None:
        self.item_ids = tuple(f"coin/{i:03d}" for i in range(200))
        self.info = ObjectiveInfo(
            name=role, role=role, kind="python", direction="maximize", unit="fraction",
            fingerprint="",
        )  # fmt: skip
        self._chance = iter(chance)
        self._generator = np.random.default_rng(seed)

    def measure(self, model: Any, item_ids: Any) -> tuple[float, ...]:
        right = self._generator.random(len(item_ids)) < next(self._chance)
        return tuple(map(float, right))


def _is_stopped(monkeypatch: pytest.MonkeyPatch, folder: Path, chances: Any, seed: int) -> bool:
    """Whether twenty evaluations of random scores stop a training."""
    coins = tuple(_Coin(role, chances, seed + i) for i, role in enumerate(("target", "general")))
    monkeypatch.setattr("backtrack.train.trainers.probes.build_objectives", lambda *_: coins)
    monkeypatch.setattr("backtrack.train.trainers.probes.log_extra_values", lambda *_: None)
    monkeypatch.setattr("backtrack.train.trainers.probes.append_line", lambda *_: None)
    monkeypatch.setattr("backtrack.train.trainers.probes.without_divergence", lambda asked: asked)
    monkeypatch.setattr("backtrack.train.trainers.probes.TorchModel", lambda *_: None)
    recipe: Any = SimpleNamespace(
        watch=SimpleNamespace(every_steps=1, items=50, max_general_drop=5.0, level=0.95),
        search=SimpleNamespace(
            batch_size=4, seed=seed, items=SimpleNamespace(selection=100, report=100)
        ),
    )
    callback = ProbeCallback(recipe, SimpleNamespace(processing_class=None), folder)
    args: Any = SimpleNamespace(world_size=1)
    control, state = TrainerControl(), TrainerState(max_steps=20)
    live = {"model": SimpleNamespace(state_dict=lambda **_: {})}
    callback.on_train_begin(args, state, control, **live)
    while state.global_step < 20 and not control.should_training_stop:
        state.global_step += 1
        callback.on_step_end(args, state, control, **live)
    return control.should_training_stop


def test_noise_stops_few_trainings_and_a_collapse_stops_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(later: float, num: int) -> int:
        chances = [0.8, *[later] * 20]
        return sum(_is_stopped(monkeypatch, tmp_path, chances, 10 * s) for s in range(num))

    # At a drop of exactly the bound, twenty comparisons of the plain estimate would stop them all.
    assert stopped(0.75, 30) <= 4
    assert stopped(0.2, 5) == 5


def test_a_bound_on_numbers_of_several_kinds_is_refused() -> None:
    infos = [
        ObjectiveInfo(
            name=unit, role="general", kind="text", direction="maximize", unit=unit, fingerprint=""
        )
        for unit in ("fraction", "bits a byte")
    ]
    with pytest.raises(UsageError, match="bits a byte and fraction"):
        require_one_unit(infos)


def test_a_divergence_is_not_measured_in_training_and_is_not_enough_alone(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    target, general = objectives(tmp_path)
    beside = make_recipe(objectives=[target, general, {"kind": "divergence"}])
    assert [o.kind for o in without_divergence(beside).objectives] == ["examples", "examples"]
    with pytest.raises(ObjectiveError, match="no other objective of `role: general`"):
        without_divergence(make_recipe(objectives=[target, {"kind": "divergence"}]))
