"""Eleven LoRA strengths and 200 generated items in vLLM: one engine, or a process each.

    .venv-vllm/bin/python tests/bench/engine.py --dtype float32

Needs vLLM and the shared documents beside the checkout. The model is the small English one under a
rank-8 LoRA moved by noise; the items are prompts of running text, and an answer of 16 tokens is
right where it is what transformers writes at strength 0.4. Printed are wall times, their ratios,
the largest difference of an item's score to the transformers engine, and where its answers part
from transformers': by how much the two tokens differ there in log-likelihood. The processes are
timed on `--fresh` of the points, and extrapolated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
SHARED = ROOT.parent / "shared"
NUM_ITEMS, NUM_TOKENS = 200, 16
ALPHAS = [0.4, 1.0]
"""Of the points at which transformers answers too."""
TASK = """
task: bench_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{completion}}}}"
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: {tokens}}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
CLI = """
import importlib.metadata, vllm
from vllm.platforms import current_platform
assert current_platform.device_type
real = importlib.metadata.version
importlib.metadata.version = lambda name: vllm.__version__ if name == "vllm" else real(name)
import lm_eval.models.vllm_causallms
importlib.metadata.version = real
from lm_eval.__main__ import cli_evaluate
if __name__ == "__main__":
    cli_evaluate()
"""
"""lm-eval's command line, which asks for the version of a distribution called `vllm`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--fresh", type=int, default=2, help="processes that are really started")
    asked = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # One core each, so that threads on a busy machine do not wait for one another.
    os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "0"}
    print(f"load at the start {os.getloadavg()[0]:.1f}, {asked.dtype}")
    with tempfile.TemporaryDirectory() as folder:
        evaluator(Path(folder), asked.dtype, asked.fresh)


def evaluator(folder: Path, dtype: str, num_fresh: int) -> None:
    from backtrack.evaluate.engine import RunFacts
    from backtrack.evaluate.transformers_engine import TransformersEngine
    from backtrack.path.placement import Placement
    from backtrack.point import Point

    run = make_run(folder, dtype)
    placement = Placement(run, device="cpu")
    points = [Point.base(), *(Point(step=20, alpha=i / 10) for i in range(1, 11))]
    prompts = make_task(folder, placement, points[4])
    some = [point for point in points if point.alpha in ALPHAS]
    ours, answers, (batched, alone, up) = in_one_engine(folder, run, points, (some, prompts))
    fresh = [fresh_process(folder, run, placement, p, dtype) for p in points[1 : 1 + num_fresh]]
    everything = sum(fresh, Cost(0, 0)) * (len(points) / len(fresh))
    show(f"11 fresh lm_eval processes (from {num_fresh})", everything, everything)
    show("one engine, points in one batch", batched, everything)
    show("one engine, point by point", alone, everything)
    show("start of the engine and its check", up, everything)
    show("start, check and one batch", up + batched, everything)
    facts = RunFacts(run.base, run.final, run.path, batch_size=16)
    by_transformers = TransformersEngine(placement, None, facts)
    by_hand, own = measured(folder, by_transformers, some, "transformers", is_batched=True)
    show(f"the transformers engine (from {len(some)} points)", own * (11 / len(some)), everything)
    compare(placement, some, (by_hand, ours), prompts, answers)


@dataclass(frozen=True)
class Cost:
    """Wall time, and processor time of this process and all that it started, in seconds."""

    wall: float
    processor: float

    @staticmethod
    def now() -> Cost:
        """Since some fixed time; processes that have ended count once they are waited for."""
        me = psutil.Process()
        spent = [me.cpu_times(), *(child.cpu_times() for child in me.children(recursive=True))]
        ended = me.cpu_times()
        gone = ended.children_user + ended.children_system
        return Cost(time.perf_counter(), sum(t.user + t.system for t in spent) + gone)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall - other.wall, self.processor - other.processor)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.wall * times, self.processor * times)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.processor + other.processor)


def show(what: str, cost: Cost, other: Cost) -> None:
    """One line: its wall and processor time, and how many of it the other costs."""
    print(
        f"{what:<52} wall {cost.wall:7.1f} s ({other.wall / cost.wall:5.2f})   "
        f"processor {cost.processor:7.1f} s ({other.processor / cost.processor:5.2f})",
        flush=True,
    )


def make_run(folder: Path, dtype: str) -> Any:
    """A run of a LoRA on all linear layers of the small English model."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.models import make_peft_run

    source = SHARED / "models" / "tiny-en"
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "base")
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return make_peft_run(folder / "run", folder / "base", config)


def make_task(folder: Path, placement: Any, where: Any) -> list[list[int]]:
    """Prompts, and as their answers what transformers writes at a point."""
    from backtrack.evaluate.encoding import encode
    from backtrack.evaluate.language_model import CompletionLimits
    from backtrack.evaluate.torch_model import TorchModel

    text = (SHARED / "data" / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    last = text[len(text) * 9 // 10 :]
    size = len(last) // NUM_ITEMS
    pieces = [last[i * size : i * size + 160] for i in range(NUM_ITEMS)]
    placement.place(where)
    ids = [encode(placement.tokenizer, piece) for piece in pieces]
    model = TorchModel(placement.model, placement.tokenizer, 16)
    answers = [each[0] for each in model.complete(ids, CompletionLimits(NUM_TOKENS, ()))]
    records = [{"prompt": p, "completion": a} for p, a in zip(pieces, answers, strict=True)]
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    (folder / "tasks").mkdir()
    task = TASK.format(path=path, tokens=NUM_TOKENS)
    (folder / "tasks" / "bench_text.yaml").write_text(task)
    return ids


def measured(
    folder: Path, engine: Any, points: list[Any], kind: str, *, is_batched: bool
) -> tuple[dict[Any, tuple[float, ...]], Cost]:
    """Scores at each point, and what that took."""
    from backtrack.evaluate.build import build_objectives
    from backtrack.recipe import Recipe

    asked = {
        "kind": "lm_eval", "task": "bench_text", "metric": "exact_match",
        "include_path": str(folder / "tasks"),
    }  # fmt: skip
    recipe = Recipe.model_validate(
        {"name": "bench", "base": "base", "engine": kind, "search": {"batch_size": 16},
         "objectives": [{**asked, "role": "target"},
                        {**asked, "role": "general", "name": "other"}]}
    )  # fmt: skip
    objective = build_objectives(recipe, engine.tokenizer)[0]
    begin = Cost.now()
    engine.expect(points if is_batched else [])
    scores = {}
    for point in points:
        engine.place(point)
        scores[point] = objective.measure(engine.language_model, objective.item_ids)
    return scores, Cost.now() - begin


def in_one_engine(
    folder: Path, run: Any, points: list[Any], asked: tuple[list[Any], list[list[int]]]
) -> tuple[dict[Any, tuple[float, ...]], dict[Any, Any], tuple[Cost, Cost, Cost]]:
    """Scores, answers with their losses, and costs: of one batch, point by point, of the start."""
    engine, up = started(run)
    try:
        scores, batched = measured(folder, engine, points, "vllm", is_batched=True)
        engine.expect([])
        engine.process._llm.reset_prefix_cache()  # nothing read before is known
        again, alone = measured(folder, engine, points, "vllm", is_batched=False)
        answers = answered(engine, *asked)
    finally:
        engine.close()
    differing = sum(a != b for p in points for a, b in zip(scores[p], again[p], strict=True))
    print(f"in one batch and point by point: {differing} of {11 * NUM_ITEMS} scores differ")
    return scores, answers, (batched, alone, up)


def answered(engine: Any, points: list[Any], prompts: list[list[int]]) -> dict[Any, Any]:
    """At each point the prompts with their greedy answers, and the answers' losses in nats."""
    from backtrack.evaluate.language_model import CompletionLimits, ScoredSequence

    found = {}
    engine.expect(points)
    model = engine.language_model
    for point in points:
        engine.place(point)
        written = model._complete(prompts, CompletionLimits(NUM_TOKENS, ()), [], None)
        wholes = [[*p, *w[0]] for p, w in zip(prompts, written, strict=True)]
        scored = [ScoredSequence(w, len(p)) for w, p in zip(wholes, prompts, strict=True)]
        found[point] = (scored, [-each.log_likelihood for each in model.score(scored)])
    return found


def started(run: Any) -> tuple[Any, Cost]:
    from backtrack.evaluate.engine import RunFacts
    from backtrack.evaluate.vllm.engine import VllmEngine
    from backtrack.path.placement import Placement
    from backtrack.recipe import PlacementSection, VllmSection

    begin = Cost.now()
    llm = {"enforce_eager": True, "kv_cache_memory_bytes": 2**30}
    settings = VllmSection(kind="vllm", memory_share=0.2, max_loras=11, llm=llm)
    folder = run.folder(run.final.step)
    placement = Placement(run, **VllmEngine.placement_options(PlacementSection(), folder))
    facts = RunFacts(run.base, run.final, run.path, batch_size=16)
    return VllmEngine(placement, settings, facts), Cost.now() - begin


def fresh_process(folder: Path, run: Any, placement: Any, point: Any, dtype: str) -> Cost:
    """What is taken by an `lm_eval --model vllm` process of its own."""
    placement.place(point)
    adapter = folder / f"adapter-{point.alpha}"
    placement.save(adapter)
    cli = folder / "cli.py"
    cli.write_text(CLI)
    model = {
        "pretrained": run.base.model, "dtype": dtype, "enforce_eager": True, "max_lora_rank": 8,
        "lora_local_path": str(adapter), "kv_cache_memory_bytes": 2**30,
        "gpu_memory_utilization": 0.2, "generation_config": "vllm",
    }  # fmt: skip
    command = [
        sys.executable, str(cli), "run", "--model", "vllm", "--model_args", json.dumps(model),
        "--tasks", "bench_text", "--include_path", str(folder / "tasks"), "--batch_size", "auto",
    ]  # fmt: skip
    begin = Cost.now()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return Cost.now() - begin


def compare(
    placement: Any,
    points: list[Any],
    scores: tuple[dict[Any, tuple[float, ...]], dict[Any, tuple[float, ...]]],
    prompts: list[list[int]],
    answers: dict[Any, Any],
) -> None:
    """Scores that differ, and the gap in likelihood where answers part."""
    from backtrack.evaluate.torch_model import TorchModel

    by_hand, ours = scores
    pairs = [(a, b) for p in points for a, b in zip(by_hand[p], ours[p], strict=True)]
    largest, differing = max(abs(a - b) for a, b in pairs), sum(a != b for a, b in pairs)
    print(f"right by transformers: {[sum(by_hand[p]) / NUM_ITEMS for p in points]} at {ALPHAS}")
    print(f"largest difference of an item's score {largest:g}: {differing} of {len(pairs)} differ")
    gaps: list[float] = []
    nats = 0.0
    for point in points:
        placement.place(point)
        scored, found = answers[point]
        model = TorchModel(placement.model, placement.tokenizer, 16)
        theirs = [-each.log_likelihood for each in model.score(scored)]
        nats = max(nats, *(abs(a - b) for a, b in zip(theirs, found, strict=True)))
        for each, prompt in zip(scored, prompts, strict=True):
            gaps += gap(placement, each.ids, prompt)
    print(f"largest difference of an answer's log-likelihood: {nats:.3g} nats over {NUM_TOKENS}")
    print(
        f"answers that are not transformers' greedy ones: {len(gaps)} of {len(pairs)}; there the "
        f"two tokens are at most {max(gaps, default=0.0):.3g} nats apart by transformers"
    )


def gap(placement: Any, whole: list[int], prompt: list[int]) -> list[float]:
    """Where an answer first leaves greedy decoding: how far its token is from the likeliest."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([whole])
        every = placement.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    logprobs = every.log_softmax(-1)
    written = torch.tensor(whole[len(prompt) :])
    short = logprobs.max(-1).values - logprobs[torch.arange(len(written)), written]
    first = (short > 0).nonzero()
    return [float(short[first[0, 0]])] if len(first) else []


if __name__ == "__main__":
    main()
