"""SmolLM2 from a training step to stock libraries, which score the export as `select` did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from backtrack.evaluate.torch_model import TorchModel
from backtrack.exporter import export
from backtrack.recipe import Recipe, find_recipe, load_recipe
from backtrack.run.directory import Run
from backtrack.selection.choice.select import Choice, select
from backtrack.train.trainers.train import train

pytestmark = [
    pytest.mark.real,
    pytest.mark.xdist_group("chosen"),  # both take the model that is trained once
    pytest.mark.filterwarnings("ignore"),
]

TASK = "leaderboard_bbh_sports_understanding"
SMALL = [
    "base.dtype=float32",  # so that other batches do not flip an answer
    "adapter_dtype=auto",
    "method.r=8",
    "data.split=train[:64]",
    "sft.max_steps=3",
    "sft.per_device_train_batch_size=2",
    "sft.max_length=160",
    "trajectory.every_steps=3",
    "objectives.0.split=test[:60]",
    f"objectives.3.task={TASK}",
    "search.items={selection: 8, report: 8}",
    "search.alphas=[0.5]",
    "search.checkpoints=0",
    "search.trials=0",
    "search.racing.shares=[]",
]


@pytest.fixture(scope="module")
def recipe(smollm2: Path, documents: Path) -> Recipe:
    """The packaged recipe, at a small size; of the general tasks one that is scored by choice."""
    overrides = [f"base.model={smollm2}", f"output={documents / 'runs'}", *SMALL]
    loaded = load_recipe(find_recipe(Path("smollm2-135m-gsm8k")), overrides)
    target, *_, bbh = loaded.objectives
    return loaded.model_copy(update={"objectives": (target, bbh)})


@pytest.fixture(scope="module")
def chosen(recipe: Recipe, documents: Path) -> tuple[Run, Choice, Path]:
    """The trained run, what was chosen for the target alone, and its export."""
    run = train(recipe)
    result = select(run, weight=1.0)
    folder = documents / "chosen"
    export(run, result.point, folder, form="adapter")
    return run, result, folder


def scores(run: Run, result: Choice, name: str) -> dict[str, float]:
    """What was measured at the chosen point on the report items."""
    (found,) = [
        m
        for m in run.measurements()
        if m.split == "report" and m.objective.name == name and m.point == result.point
    ]
    return dict(zip(found.item_ids, found.scores, strict=True))


def test_stock_transformers_give_the_losses_of_the_export(
    smollm2: Path, chosen: tuple[Run, Choice, Path], recipe: Recipe
) -> None:
    run, result, folder = chosen
    assert result.point.alpha > 0, "three steps of learning are better than none"
    measured = scores(run, result, "gsm8k")
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    lines = Path("openai/gsm8k/main/test.jsonl").read_text(encoding="utf-8").splitlines()
    for item_id, loss in list(measured.items())[:4]:
        record = json.loads(lines[int(item_id.rpartition("/")[2])])
        turn = [{"role": "user", "content": record["question"]}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
        answer = tokenizer(record["answer"], add_special_tokens=False)["input_ids"]
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :])
        assert loss == pytest.approx(float(expected), rel=1e-4), item_id


def test_lm_eval_s_own_command_gives_the_scores_of_the_export(
    smollm2: Path, chosen: tuple[Run, Choice, Path], documents: Path
) -> None:
    run, result, folder = chosen
    measured = scores(run, result, "bbh")
    numbers = sorted(int(item_id.rpartition("/")[2]) for item_id in measured)
    arguments = f"pretrained={smollm2},peft={folder},dtype=float32"
    subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", arguments,
         "--tasks", TASK, "--num_fewshot", "0", "--samples", json.dumps({TASK: numbers}),
         "--device", "cpu", "--batch_size", "4", "--log_samples", "--output_path", "theirs"],
        check=True, cwd=documents, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True,
    )  # fmt: skip
    (path,) = (documents / "theirs").rglob("samples_*.jsonl")
    theirs = {
        f"{TASK}/{record['doc_id']}": record["acc_norm"]
        for record in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    }
    assert theirs == pytest.approx(measured)
    assert result.selection.report["chosen"].general.estimate == pytest.approx(
        100 * fmean(theirs.values())
    )


def test_its_own_precision_shares_what_prompts_begin_with(smollm2: Path) -> None:
    """Thirty blocks in bfloat16 change logits by a tenth of their spread from batch to batch."""
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16).eval()
    assert TorchModel(model, AutoTokenizer.from_pretrained(smollm2), "auto").reads_trees
