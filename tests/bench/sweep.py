"""Eleven strengths and one lm-eval task: one process of ours, or a merge and an `lm_eval` each.

    python tests/bench/sweep.py --mergekit PATH/TO/mergekit-yaml [--merged 11]

Needs the shared documents beside the checkout, and mergekit in an environment of its own (it pins
older libraries). The model is the small English one and a copy moved by noise; the task is
leaderboard_bbh_boolean_expressions on its first 100 documents. Both sides start cold; printed are
the seconds on the processor of both, which other users of the machine move less than those on the
wall, their ratio, and the largest difference of a score. With fewer than eleven strengths merged,
their seconds are those times eleven over as many.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TASK = "leaderboard_bbh_boolean_expressions"
NUM_ITEMS = 100
ALPHAS = [i / 10 for i in range(11)]
SHARED = Path(__file__).resolve().parents[3] / "shared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", required=True, help="the mergekit-yaml program")
    parser.add_argument("--merged", type=int, default=len(ALPHAS), help="strengths they take")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.chdir(SHARED / "data")
    if asked.ours:
        print(json.dumps(sweep(asked.ours)))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), asked.mergekit, asked.merged)


def compare(folder: Path, mergekit: str, num_merged: int) -> None:
    make_tuned(folder / "tuned")
    begin = children_seconds()
    ours = subprocess.run(
        [sys.executable, __file__, "--mergekit", mergekit, "--ours", str(folder)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    our_seconds = children_seconds() - begin
    scores = json.loads(ours.stdout.splitlines()[-1])
    print(f"ours, {len(ALPHAS)} strengths: {our_seconds:.1f} s", flush=True)
    begin = children_seconds()
    # The middle first: at the ends a merge is a copy.
    chosen = sorted(range(len(ALPHAS)), key=lambda i: abs(ALPHAS[i] - 0.5))[:num_merged]
    theirs = {i: merge_and_evaluate(folder, mergekit, ALPHAS[i]) for i in chosen}
    their_seconds = (children_seconds() - begin) * len(ALPHAS) / num_merged
    gap = max(abs(scores[i] - theirs[i]) for i in chosen)
    print(
        f"mergekit and lm_eval {their_seconds:.0f} s ({num_merged} of {len(ALPHAS)} strengths "
        f"taken), ratio {their_seconds / our_seconds:.1f}; scores differ by at most {gap:.3f}"
    )


def children_seconds() -> float:
    """Processor seconds of the processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_tuned(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = SHARED / "models" / "tiny-en"
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * parameter.std()
            parameter.add_(0.3 * noise.to(parameter.dtype))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def sweep(folder: Path) -> list[float]:
    """Our side: adopt, place eleven times, measure."""
    from backtrack import Placement, Point, adopt
    from backtrack.evaluate.build import build_objectives
    from backtrack.evaluate.torch_model import TorchModel
    from backtrack.recipe import Recipe

    base = str(SHARED / "models" / "tiny-en")
    run = adopt(folder / "tuned", base=base, runs=folder / "runs")
    placement = Placement(run)
    recipe = Recipe.model_validate({
        "name": "sweep", "base": base,
        "objectives": [
            {"kind": "lm_eval", "role": role, "task": TASK, "metric": "acc_norm", "name": role}
            for role in ("target", "general")
        ],
    })  # fmt: skip
    objective = build_objectives(recipe, placement.tokenizer)[0]
    ids = sorted(objective.item_ids, key=lambda name: int(name.rpartition("/")[2]))[:NUM_ITEMS]
    model = TorchModel(placement.model, placement.tokenizer, recipe.search.batch_size)
    found = []
    for alpha in ALPHAS:
        placement.place(Point(step=run.steps[-1], alpha=alpha))
        scores = objective.measure(model, ids)
        found.append(sum(scores) / len(scores))
    return found


def merge_and_evaluate(folder: Path, mergekit: str, alpha: float) -> float:
    """Their side: a merged model on disk, then `lm_eval` from the shell."""
    models = ((SHARED / "models" / "tiny-en", 1 - alpha), (folder / "tuned", alpha))
    listed = [f"  - model: {path}\n    parameters: {{weight: {w}}}" for path, w in models]
    recipe = folder / "merge.yaml"
    recipe.write_text(
        "models:\n" + "\n".join(listed) + "\nmerge_method: linear\ndtype: bfloat16\n"
    )
    merged, out = folder / "merged", folder / "out"
    for old in (merged, out):
        shutil.rmtree(old, ignore_errors=True)
    quiet: Any = {"check": True, "capture_output": True}
    subprocess.run([mergekit, str(recipe), str(merged)], **quiet)
    subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", TASK, "--device", "cpu",
            "--model_args", f"pretrained={merged}", "--limit", str(NUM_ITEMS),
            "--batch_size", "8", "--output_path", str(out),
        ],
        **quiet,
    )  # fmt: skip
    results = json.loads(next(out.rglob("results_*.json")).read_text())["results"]
    score: float = results[TASK]["acc_norm,none"]
    return score


if __name__ == "__main__":
    main()
