"""Make pairs of answers: some to train on by DPO, others held out to measure.

    python examples/make_pairs.py demo
    python examples/make_pairs.py gsm8k

`demo`: the embedded questions; the right number is preferred to a wrong one near it. `gsm8k`:
short problems of GSM8K; an end in words is preferred to the mark "####", after the same solution.

Written into pairs/, in TRL's format, {"prompt", "chosen", "rejected"}: NAME-train.jsonl and
NAME-held-out.jsonl. `recipes/demo-dpo.yaml` and `recipes/smollm2-135m-dpo.yaml` train on them.

Promised: one seed gives the same files, and no pair held out is trained on.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

from datasets import load_dataset

import backtrack

ASSETS = Path(backtrack.__file__).parent / "assets" / "demo"
SEED = 0
NEAR = (-10, -2, -1, 1, 2, 10)
MAX_CHARACTERS = 250
"""Of a problem of GSM8K and its solution together."""
NUM_TRAIN, NUM_HELD_OUT = 200, 60

Rows = list[dict[str, Any]]


def of_demo(split: str) -> Rows:
    """The demo's sums told as a story, each with its sum and a wrong one near it."""
    name = {"train": "train.jsonl", "test": "target.jsonl"}[split]
    lines = (ASSETS / name).read_text(encoding="utf-8").splitlines()
    rng = random.Random(f"{SEED} {split}")
    pairs = []
    for row in map(json.loads, lines):
        right = int(row["completion"])
        wrong = rng.choice([right + off for off in NEAR if right + off >= 0])
        pairs.append({"prompt": row["prompt"], "chosen": f" {right}", "rejected": f" {wrong}"})
    return pairs


def of_gsm8k(split: str) -> Rows:
    """Short problems of GSM8K, each with its solution ended in words and as the data ends it."""
    pairs = []
    for row in load_dataset("openai/gsm8k", "main", split=split):
        solution, _, number = re.sub(r"<<.*?>>", "", row["answer"]).partition("\n#### ")
        if len(row["question"]) + len(solution) <= MAX_CHARACTERS:
            ends = {"chosen": f"The answer is {number}.", "rejected": f"#### {number}"}
            answers = {key: f"{solution}\n{end}" for key, end in ends.items()}
            pairs.append({"prompt": row["question"], **answers})
    num = NUM_TRAIN if split == "train" else NUM_HELD_OUT
    return random.Random(SEED).sample(pairs, num)


MAKERS = {"demo": of_demo, "gsm8k": of_gsm8k}


def main(name: str, folder: Path = Path("pairs")) -> None:
    """Write both files of one kind into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in (("train", "train"), ("test", "held-out")):
        path = folder / f"{name}-{part}.jsonl"
        pairs = MAKERS[name](split)
        path.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs), encoding="utf-8")
        print(f"{path}: {len(pairs)} pairs")


if __name__ == "__main__":
    main(sys.argv[1])
