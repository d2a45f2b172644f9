"""Tokens read and seconds of lm-eval's tasks: our model interface and lm-eval's `hf` model.

    python -m tests.bench.reading [--model FOLDER] [--dtype float32] [--batch-sizes 1 8]
        [--only bbh gsm8k nq_open ifeval] [--bbh-tasks '*'] [--documents 2] [--threads 1]

Needs the shared documents beside the checkout; the model is the small English one unless given.
Both sides answer the same requests of the same tasks in one process, `hf` once with each batch
size, of which the fastest counts. Printed are ratios, and how the answers differ. Seconds are the
process's own on the processor, which other users of the machine move less.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

SHARED = Path(__file__).resolve().parents[3] / "shared"
KINDS: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "bbh": ("leaderboard_bbh_*", 3, {}),
    "gsm8k": ("gsm8k", 5, {"max_gen_toks": 64}),
    "nq_open": ("nq_open", None, {"max_gen_toks": 16}),
    "ifeval": ("ifeval", None, {"max_gen_toks": 64}),
}
"""By name: tasks, number of shots if not the task's own, and changed settings of generation."""


@dataclass
class Answers:
    """What a model answered, with its cost."""

    responses: list[Any]
    num_tokens: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "tiny-en")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--bbh-tasks", nargs="+", default=["*"])
    parser.add_argument("--documents", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    os.environ |= {"HF_HUB_OFFLINE": "1", "NLTK_DATA": str(SHARED / "data" / "nltk_data")}
    os.chdir(SHARED / "data")
    model, tokenizer = load(asked.model, asked.dtype)
    print(f"{asked.model.name}, {asked.dtype}, {torch.get_num_threads()} threads")
    for name in asked.only:
        tasks = load_tasks(name, asked.bbh_tasks)
        lm = our_model(model, tokenizer)  # one for all points, as in a search
        answer(lm, model, tasks, 1)
        ours = answer(lm, model, tasks, asked.documents)
        stock = {
            size: answer(stock_model(model, tokenizer, size), model, tasks, asked.documents)
            for size in asked.batch_sizes
        }
        size = min(stock, key=lambda size: stock[size].seconds)
        print_row(f"{name} ({len(tasks)} tasks)", ours, stock[size], size)


def load(folder: Path, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return made.eval(), AutoTokenizer.from_pretrained(folder)


def load_tasks(name: str, bbh_tasks: Sequence[str] = ("*",), **generation: Any) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    pattern, shots, settings = KINDS[name]
    manager = TaskManager()
    names = fnmatch.filter(manager.all_subtasks, pattern) or [pattern]
    if name == "bbh":
        names = [n for part in bbh_tasks for n in fnmatch.filter(names, f"leaderboard_bbh_{part}")]
    tasks: dict[str, Any] = manager.load(names)["tasks"]
    for task in tasks.values():
        if shots is not None:
            task.set_config(key="num_fewshot", value=shots)
        if settings:
            changed = {**settings, **generation}
            task.set_config(key="generation_kwargs", value=changed, update=True)
    return tasks


def our_model(model: Any, tokenizer: Any) -> Any:
    from backtrack.evaluate.objectives.lm_eval_model import AskedByLmEval
    from backtrack.evaluate.torch_model import TorchModel

    return AskedByLmEval(TorchModel(model, tokenizer, "auto"), None)


def stock_model(model: Any, tokenizer: Any, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32"
    )


def answer(lm: Any, model: Any, tasks: dict[str, Any], num_documents: int) -> Answers:
    """The answers to the first documents of each task."""
    from lm_eval.evaluator import evaluate

    counted = [0]

    def count(_module: Any, inputs: Any, _output: Any) -> None:
        counted[0] += inputs[0].numel()

    for task in tasks.values():
        task.set_fewshot_seed(1234)
    hook = model.get_input_embeddings().register_forward_hook(count)
    begin = time.process_time()
    found = evaluate(
        lm, {"tasks": tasks}, samples={name: list(range(num_documents)) for name in tasks},
        bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    seconds = time.process_time() - begin
    hook.remove()
    samples = [sample for name in tasks for sample in found["samples"][name]]
    return Answers([sample["resps"] for sample in samples], counted[0], seconds)


def print_row(name: str, ours: Answers, stock: Answers, batch_size: int) -> None:
    print(
        f"{name}: {stock.num_tokens:,} tokens by hf, {ours.num_tokens:,} by ours, "
        f"{stock.num_tokens / ours.num_tokens:.1f} times fewer; "
        f"{stock.seconds:.1f} s (batches of {batch_size}) and {ours.seconds:.1f} s, "
        f"{stock.seconds / ours.seconds:.1f} times faster; "
        f"likelihoods within {gap(ours, stock):.1e}, {num_equal(ours, stock)} of "
        f"{len(ours.responses)} documents answered alike, other choices within "
        f"{widest_tie(ours, stock):.1e} of the likeliest",
        flush=True,
    )


def gap(ours: Answers, stock: Answers) -> float:
    """The largest difference of a log-likelihood; 0 if there are none."""
    pairs = zip(_values(ours), _values(stock), strict=True)
    both = [pair for left, right in pairs for pair in zip(left, right, strict=True)]
    return max((abs(a - b) for a, b in both if not isinstance(a, str)), default=0.0)


def num_equal(ours: Answers, stock: Answers) -> int:
    """Documents with the same text, or the same likeliest choice."""
    pairs = zip(_values(ours), _values(stock), strict=True)
    return sum(
        a == b if isinstance(a[0], str) else a.index(max(a)) == b.index(max(b)) for a, b in pairs
    )


def widest_tie(ours: Answers, stock: Answers) -> float:
    """How much likelier the stock model finds its choice than ours at most, in nats."""
    pairs = zip(_values(ours), _values(stock), strict=True)
    scored = [(a, b) for a, b in pairs if not isinstance(b[0], str)]
    return max((max(b) - b[a.index(max(a))] for a, b in scored), default=0.0)


def _values(answers: Answers) -> list[list[Any]]:
    """The texts, or the log-likelihoods of the choices, of each document."""
    first = [[choice[0] for choice in each] for each in answers.responses]
    return [[v if isinstance(v, str) else float(v[0]) for v in each] for each in first]


if __name__ == "__main__":
    main()
