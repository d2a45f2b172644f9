"""The whole job on real documents: a small English model, GSM8K, and stock lm-eval tasks.

The folder of documents lies beside the checkout; without it these tests skip and say so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from backtrack.exporter import export
from backtrack.path.models.loading import probe
from backtrack.path.placement import Placement
from backtrack.recipe import load_recipe
from backtrack.records.selection import Constraints
from backtrack.run.adopt import adopt
from backtrack.selection.choice.select import select
from backtrack.train.trainers.check import library_faults
from backtrack.train.trainers.train import train

pytestmark = [pytest.mark.shared, pytest.mark.filterwarnings("ignore")]

QUESTION = {"prompt": "Question: {question}\nAnswer:", "completion": " {answer}"}
GSM8K = {"path": "openai/gsm8k", "subset": "main", "score": "nll", **QUESTION}
# To a model of 5M parameters a token has a probability of 1 to 10%: as such its losses would
# hardly differ.
RANGES = {"gsm8k": [4.0, 2.0], "shakespeare": [3.5, 1.5], "pubmedqa": [6.0, 4.0], "nq": [7.5, 5.5]}
LOSSES: list[dict[str, Any]] = [
    {"kind": "examples", "role": "target", "name": "gsm8k", "split": "test[:400]", **GSM8K},
    {"kind": "text", "role": "general", "name": "shakespeare", "path": "tinyshakespeare/input.txt",
     "start": 0.9, "window_tokens": 96, "max_items": 160},
    {"kind": "examples", "role": "general", "name": "pubmedqa", "path": "pubmedqa/test.jsonl",
     "score": "nll", "prompt": "{question}", "completion": " {long_answer}"},
    {"kind": "examples", "role": "general", "name": "nq", "path":
    "google-research-datasets/nq_open",
     "subset": "nq_open", "split": "validation[3000:]", "score": "nll",
     "prompt": "Q: {question}\nA:", "completion": " {answer[0]}"},
]  # fmt: skip
for objective in LOSSES:
    objective["range"] = RANGES[objective["name"]]
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": {"kind": "full"}, "sft": {"learning_rate": 1e-3}},
    "lora": {
        "method": {"kind": "lora", "r": 16, "lora_alpha": 32},
        "sft": {"learning_rate": 4e-3},
    },
    "oft": {"method": {"kind": "oft", "oft_block_size": 32}, "sft": {"learning_rate": 4e-3}},
}


@pytest.fixture
def documents(
    shared: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working directory from which stock task names find their documents."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))
    monkeypatch.chdir(shared / "data")
    return shared


def write_recipe(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def gsm8k_recipe(documents: Path, folder: Path, method: str) -> dict[str, Any]:
    sft = {
        "max_steps": 60, "per_device_train_batch_size": 8, "max_length": 160, "warmup_steps": 5,
        "lr_scheduler_type": "constant_with_warmup", "save_strategy": "no",
        **METHODS[method]["sft"],
    }  # fmt: skip
    return {
        "name": f"gsm8k-{method}",
        "base": {"model": str(documents / "models" / "tiny-en"), "dtype": "float32"},
        "output": str(folder / "runs"),
        "method": METHODS[method]["method"],
        "data": {"train": "openai/gsm8k", "subset": "main", "split": "train[700:1500]",
        **QUESTION}, "sft": sft,
        "trajectory": {"every_steps": 30},
        "objectives": LOSSES,
        "search": {
            "trials": 1, "checkpoints": 1, "alphas": [0.2, 0.4, 0.6, 0.8], "batch_size": 16,
            "items": {"selection": 40, "report": 40},
        },
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", list(METHODS))
def test_the_chosen_point_beats_the_final_checkpoint_on_items_it_never_saw(
    method: str, documents: Path, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path, gsm8k_recipe(documents, tmp_path, method))
    run = train(load_recipe(path, checks=[library_faults]))
    choice = select(run, weight=0.5)
    against = {difference.to: difference for difference in choice.selection.differences}
    assert choice.point.alpha > 0
    assert against["final"].utility.low > 0
    assert against["final"].general.low > 0
    assert against["base"].target.low > 0


@pytest.fixture(scope="module")
def trl_script_output(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user's own TRL script leaves. It imports nothing of ours."""
    folder = tmp_path_factory.mktemp("trl")
    script = f"""
        from datasets import load_dataset
        from peft import LoraConfig
        from trl import SFTConfig, SFTTrainer

        data = load_dataset("openai/gsm8k", "main", split="train[700:900]").map(
            lambda row: {{"prompt": "Question: " + row["question"], "completion": " " +
            row["answer"]}}, remove_columns=["question", "answer"],
        )
        SFTTrainer(
            model={str(shared / "models" / "tiny-en")!r},
            train_dataset=data,
            peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
            args=SFTConfig(
                output_dir={str(folder / "sft")!r}, max_steps=12, save_steps=4,
                per_device_train_batch_size=4,
                learning_rate=2e-3, max_length=128, report_to="none",
                use_cpu=True, bf16=False, seed=0,
            ),
        ).train()
    """
    environment = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=shared / "data", env=os.environ | environment, check=True,
        capture_output=True,
    )  # fmt: skip
    return folder / "sft"


def test_a_plain_trl_script_s_folder_is_adopted_searched_and_exported(
    trl_script_output: Path, documents: Path, tmp_path: Path
) -> None:
    recipe = {
        "name": "adopted", "base": str(documents / "models" / "tiny-en"), "objectives": LOSSES,
        "search": {"trials": 1, "checkpoints": 1, "alphas": [0.5], "items": {"selection": 8,
        "report": 8}},
    }  # fmt: skip
    loaded = load_recipe(write_recipe(tmp_path, recipe))
    run = adopt(trl_script_output, recipe=loaded, runs=tmp_path / "runs")
    assert run.steps == (4, 8, 12)
    choice = select(run, weight=0.6)
    export(run, choice.point, tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(documents / "models" / "tiny-en")
    stock = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    placement = Placement(run)
    placement.place(choice.point)
    assert torch.equal(probe(stock), probe(placement.model))


@pytest.mark.slow
def test_stock_lm_eval_tasks_go_through_search_and_select(
    trl_script_output: Path, documents: Path, tmp_path: Path
) -> None:
    recipe = {
        "name": "stock",
        "base": str(documents / "models" / "tiny-en"),
        "objectives": [
            {"kind": "lm_eval", "role": "target", "task": "gsm8k", "metric": "exact_match",
             "filter": "flexible-extract", "num_fewshot": 0, "max_gen_toks": 12},
            {"kind": "lm_eval", "role": "general", "name": "bbh", "metric": "acc_norm",
             "task": "leaderboard_bbh_*", "num_fewshot": 0},
            {"kind": "lm_eval", "role": "general", "task": "nq_open", "metric": "exact_match",
             "filter": "remove_whitespace", "num_fewshot": 1, "max_gen_toks": 6},
        ],
        "search": {"trials": 0, "checkpoints": 1, "alphas": [0.5], "batch_size": 8,
                   "items": {"selection": 26, "report": 26}},
    }  # fmt: skip
    loaded = load_recipe(write_recipe(tmp_path, recipe))
    run = adopt(trl_script_output, recipe=loaded, runs=tmp_path / "runs")
    choice = select(run, weight=0.5)
    assert set(choice.selection.report) == {"base", "chosen", "final"}
    searched = [m for m in run.measurements() if m.split == "selection"]
    assert {m.objective.name for m in searched} == {"gsm8k", "bbh", "nq_open"}
    bbh = {item for m in searched if m.objective.name == "bbh" for item in m.item_ids}
    strata = {item.rpartition("/")[0] for item in bbh}
    assert len(strata) >= 20, "the tasks of a group share its items"
    scored = [
        (m.point, m.objective.name, m.split, item)
        for m in run.measurements()
        for item in m.item_ids
    ]
    assert len(scored) == len(set(scored)), "no item is measured twice"
    select(run, weight=0.9, constraints=Constraints(max_general_drop=100))
    assert [m for m in run.measurements() if m.split == "selection"] == searched
