"""Keep a trajectory in a training loop of your own, then choose and export a point.

The loop is plain torch. With accelerate it is the same: `begin` comes after `accelerator.prepare`,
and the script is started by `accelerate launch`; of several processes the main one writes.

Runs offline on the model and data embedded in the package, in about two minutes on a CPU:

    python examples/with_a_loop.py runs/with-a-loop
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import backtrack
from backtrack import CheckpointSaver, Run, export, select
from backtrack.recipe import load_recipe

ASSETS = Path(backtrack.__file__).parent / "assets" / "demo"
BATCH_SIZE = 16


def batch(rows: list[dict[str, str]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Token ids, attention and labels, [rows, tokens]; prompts and padding are not learned."""
    pieces = [
        [tokenizer(row[key])["input_ids"] for key in ("prompt", "completion")] for row in rows
    ]
    length = max(len(prompt) + len(answer) for prompt, answer in pieces) + 1
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), -100)
    for i, (prompt, answer) in enumerate(pieces):
        answer = [*answer, tokenizer.eos_token_id]
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : end] = torch.tensor(answer)
    is_read = torch.arange(length) < (ids != tokenizer.pad_token_id).sum(1, keepdim=True)
    return {"input_ids": ids, "attention_mask": is_read.long(), "labels": labels}


def train(folder: Path, max_steps: int) -> None:
    """An ordinary loop but for the saver."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "model")
    rows = [json.loads(line) for line in (ASSETS / "train.jsonl").read_text().splitlines()]
    plain = AutoModelForCausalLM.from_pretrained(ASSETS / "model")
    model = get_peft_model(plain, LoraConfig(r=8, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    draw = random.Random(0)
    with CheckpointSaver.begin(folder, model, every_steps=max(1, max_steps // 8)) as saver:
        for step in range(1, max_steps + 1):
            loss = model(**batch(draw.sample(rows, BATCH_SIZE), tokenizer)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            saver.step(step, loss)


def main(folder: Path, max_steps: int = 120, *overrides: str) -> None:
    train(folder, max_steps)
    recipe = load_recipe(ASSETS / "recipe.yaml", ["search.trials=4", *overrides])
    run = Run.open(folder)
    choice = select(run, weight=0.6, recipe=recipe)
    print(choice.selection.verdict)
    written = export(run, choice.point, folder / "export" / "adapter")
    print(f"{choice.point}: {written.folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int((sys.argv[2:] or ["120"])[0]), *sys.argv[3:])
