"""Folders that lm-eval itself wrote, and sides with known scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from backtrack.gate.sides import RecordedScores, RecordedSide
from backtrack.records import ObjectiveInfo
from tests.models import make_base

MakeSide = Callable[..., RecordedSide]
NUM_DOCUMENTS = 40
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""


@dataclass(frozen=True)
class Evaluated:
    """What lm-eval wrote of two models, and where the models and tasks are.

    Attributes:
        folder: Everything is in it: `candidate` and `incumbent` were given as output paths.
        tasks: Folder of the tasks, `sums` and `words` of the group `toys`.
        models: Folders of the models, candidate first.
    """

    folder: Path
    tasks: Path
    models: tuple[Path, Path]

    @property
    def candidate(self) -> Path:
        return self.folder / "candidate"

    @property
    def incumbent(self) -> Path:
        return self.folder / "incumbent"


def evaluate(
    model: Path, tasks: Path, output: Path, names: Sequence[str] = ("toys",), **given: Any
) -> None:
    """Evaluate a model by lm-eval and let it write its files, as its command line does."""
    tracker = EvaluationTracker(output_path=str(output))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.name_or_path = model.name
    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    found: Any = lm_eval.simple_evaluate(
        model=HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=16, max_length=128),
        tasks=list(names),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        **given,
    )
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    for task in found["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])


def make_evaluated(folder: Path) -> Evaluated:
    """Two random models, evaluated by lm-eval on two tasks."""
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, shift in (("sums", 1), ("words", 2)):
        data = folder / f"{name}.jsonl"
        rows = [
            {"prompt": f"{name} {i}:", "choices": [f" {i}", f" {i + shift}"], "answer": i % 2}
            for i in range(NUM_DOCUMENTS)
        ]
        data.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, data=data), encoding="utf-8")
    (tasks / "toys.yaml").write_text("group: toys\ntask: [sums, words]\n", encoding="utf-8")
    models = tuple(make_base(folder / f"model-{seed}", seed=seed) for seed in (0, 1))
    for model, output in zip(models, ("candidate", "incumbent"), strict=True):
        evaluate(model, tasks, folder / output)
    return Evaluated(folder, tasks, (models[0], models[1]))


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return make_evaluated(tmp_path_factory.mktemp("lm-eval"))


@pytest.fixture(scope="session")
def make_side() -> MakeSide:
    """Sides of known scores by objective; keywords are fields of the objectives' records."""

    def make(name: str, scores: dict[str, Sequence[float]], **given: Any) -> RecordedSide:
        objectives = {}
        for objective, values in scores.items():
            settings = {"role": "general", "direction": "maximize", "unit": "fraction",
                        "kind": "python", "fingerprint": "same", **given}  # fmt: skip
            info = ObjectiveInfo.model_validate({"name": objective, **settings})
            by_item = {f"{objective}/{i:04d}": float(value) for i, value in enumerate(values)}
            objectives[objective] = RecordedScores(info, by_item)
        return RecordedSide(name, objectives)

    return make
