"""The first blocks of SmolLM2 by the packaged recipe of DPO: what they prefer before and after."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from backtrack.point import Point
from backtrack.recipe import find_recipe, load_recipe
from backtrack.run.directory import Run
from backtrack.selection.choice.select import select
from backtrack.train.trainers.train import train

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]

MAKER = Path(__file__).resolve().parents[2] / "examples" / "make_pairs.py"
TINY = [
    "base.dtype=float32",
    "adapter_dtype=auto",
    "dpo.max_steps=2",
    "trajectory.every_steps=2",
    "objectives.0.score=margin",
    "objectives.0.range=[-50, 50]",
    "objectives.0.split=test[:8]",
    "objectives.1.split=validation[:8]",
    "search.items={selection: 4, report: 4}",
    "search.alphas=[0.5]",
    "search.checkpoints=0",
    "search.trials=0",
    "search.racing.shares=[]",
]


@pytest.fixture(scope="module")
def run(first_blocks: Path, documents: Path) -> Run:
    """Two steps of the packaged recipe, and a point chosen."""
    runpy.run_path(str(MAKER))["main"]("gsm8k")
    overrides = [f"base.model={first_blocks}", f"output={documents / 'preferences'}", *TINY]
    trained = train(load_recipe(find_recipe(Path("smollm2-135m-dpo")), overrides))
    select(trained, weight=1.0)
    return trained


def margins(run: Run, point: Point) -> dict[str, float]:
    """Margins of all pairs measured at a point, by the item."""
    return {
        item: score
        for found in run.measurements()
        if found.point == point and found.objective.name == "preferred"
        for item, score in zip(found.item_ids, found.scores, strict=True)
    }


def test_two_steps_move_the_margin_of_pairs_held_out(run: Run) -> None:
    base, final = (margins(run, point) for point in (Point.base(), Point(step=2)))
    shared = base.keys() & final.keys()
    assert len(shared) >= 4
    assert fmean(final[item] - base[item] for item in shared) > 0.1


def test_the_bases_margin_is_what_stock_transformers_give(first_blocks: Path, run: Run) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(first_blocks, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(first_blocks)
    lines = Path("pairs/gsm8k-held-out.jsonl").read_text(encoding="utf-8").splitlines()
    item, margin = next(iter(margins(run, Point.base()).items()))
    pair = json.loads(lines[int(item.rpartition("/")[2])])
    turn = [{"role": "user", "content": pair["prompt"]}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]

    def log_likelihood(answer: str) -> float:
        ids = torch.tensor([prompt + tokenizer(answer, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(prompt) - 1 : -1]
        targets = ids[0, len(prompt) :]
        return -float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))

    expected = log_likelihood(pair["chosen"]) - log_likelihood(pair["rejected"])
    assert margin == pytest.approx(expected, abs=1e-2)
