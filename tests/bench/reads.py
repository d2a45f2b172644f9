"""Models that each command loads, and bytes of weights that it takes from files.

    python tests/bench/reads.py [--layers 4] [--width 1024] [--only NAME,...] [--kinds full,lora]

Creates a Llama-shaped model with random weights (0.17 GB in bf16 by default) and two runs of it,
of whole models and of LoRA r16. Each row is a process of its own. Printed are, for either run:
models loaded (shapes alone, on `meta`, do not count), bytes of tensors taken from safetensors
files for models and checks, in bases, and seconds. The row `transformers` loads the base once;
`first point` is `backtrack select` up to the first measurement. In a fresh process each, files lie
in the system's cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import safetensors
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from backtrack.diagnose.diagnose import diagnose
from backtrack.diagnose.diagnoser import Options
from backtrack.exporter import export
from backtrack.path.placement import Placement
from backtrack.recipe import load_recipe
from backtrack.run.directory import Run
from backtrack.selection.choice.select import select
from backtrack.selection.measure.progress import Progress
from tests.bench.memory import CONFIGS
from tests.bench.placement import adapter_run, full_run, make_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=16_000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--only", default="", help="commands, separated by commas")
    parser.add_argument("--kinds", default="full,lora", help="runs, separated by commas")
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = make_model(folder / "base", options)
        if "full" in options.kinds:
            full_run(folder / "full", base)
        if "lora" in options.kinds:
            adapter_run(folder / "lora", base, CONFIGS["lora"], options.device)
        write_recipe(folder, base)
        size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        print(f"base: {size / 1e9:.2f} GB in {options.dtype}")
        print(f"{'':28}{'models':>8}{'bases':>8}{'seconds':>9}")
        for name in options.only.split(",") if options.only else COMMANDS:
            for kind in options.kinds.split(","):
                models, num_bytes, seconds = in_process(name, folder, kind)
                print(
                    f"{f'{name}, {kind}':28}{models:8.0f}{num_bytes / size:8.2f}{seconds:9.1f}",
                    flush=True,
                )


def quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def write_recipe(folder: Path, base: Path) -> None:
    """Two objectives of a few short examples, at base and final checkpoint only."""
    for name in ("sums", "words"):
        rows = [{"prompt": f"{name} {i}:", "completion": f" {i * 7 % 11}"} for i in range(8)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "recipe.yaml").write_text(
        f"name: r\nbase: {base}\nobjectives:\n"
        "  - {kind: examples, role: target, path: sums.jsonl, score: nll}\n"
        "  - {kind: examples, role: general, path: words.jsonl, score: nll}\n"
        "search: {trials: 0, checkpoints: 0, alphas: [0.5], items: {selection: 4, report: 4}}\n"
    )


def open_run(folder: Path, kind: str) -> None:
    Placement(Run.open(folder / kind))


class MeasuredError(Exception):
    """The first measurement is there."""


def first_point(folder: Path, kind: str) -> None:
    def stop(progress: Progress) -> None:
        if progress.done:
            raise MeasuredError

    anew = load_recipe(folder / "recipe.yaml", ["search.seed=1"])
    with contextlib.suppress(MeasuredError):
        select(Run.open(folder / kind), recipe=anew, on_progress=stop)


def first_select(folder: Path, kind: str) -> None:
    select(Run.open(folder / kind), recipe=load_recipe(folder / "recipe.yaml"))


def select_again(folder: Path, kind: str) -> None:
    select(Run.open(folder / kind), weight=0.5)


def export_chosen(folder: Path, kind: str) -> None:
    run = Run.open(folder / kind)
    selection = run.selection()
    export(run, selection.chosen if selection else run.final, folder / f"out-{kind}")


def diagnose_final(folder: Path, kind: str) -> None:
    run = Run.open(folder / kind)
    modules = ("model.layers.0.self_attn.q_proj",)
    diagnose(run, [run.final], Options(modules=modules, num_prompts=2, has_path=False))


def load_base(folder: Path, kind: str) -> None:
    AutoModelForCausalLM.from_pretrained(folder / "base")


COMMANDS = {
    "transformers": load_base,
    "open": open_run,
    "first point": first_point,
    "select": first_select,
    "select again": select_again,
    "export": export_chosen,
    "diagnose": diagnose_final,
}
"""In an order in which each finds what it needs of those before."""


def in_process(name: str, folder: Path, kind: str) -> tuple[int, int, float]:
    """Models, bytes and seconds of one command, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(name, str(folder), kind, sender))
    process.start()
    sender.close()
    found: tuple[int, int, float] = receiver.recv()
    process.join()
    return found


def measure(name: str, folder: str, kind: str, sender: Any) -> None:
    quiet()
    counts: Counter[str] = Counter()
    count_models(counts)
    count_bytes(counts)
    begin = time.perf_counter()
    COMMANDS[name](Path(folder), kind)
    sender.send((counts["models"], counts["bytes"], time.perf_counter() - begin))


def count_models(counts: Counter[str]) -> None:
    stock = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def load(kind: Any, *args: Any, **options: Any) -> Any:
        if options.get("device_map") == {"": torch.device("meta")}:
            taken = counts["bytes"]
            shell = stock(kind, *args, **options)
            counts["bytes"] = taken
            return shell
        counts["models"] += 1
        return stock(kind, *args, **options)

    PreTrainedModel.from_pretrained = classmethod(load)  # type: ignore[assignment, method-assign]


def count_bytes(counts: Counter[str]) -> None:
    """Count tensors taken from safetensors files, wherever the reader was imported by name."""
    stock = safetensors.safe_open

    def counted_open(*args: Any, **options: Any) -> CountedFile:
        return CountedFile(stock(*args, **options), counts)

    for module in list(sys.modules.values()):
        if vars(module).get("safe_open") is stock:
            module.safe_open = counted_open  # type: ignore[attr-defined]


class CountedFile:
    """An open safetensors file that counts the bytes of what is taken from it."""

    def __init__(self, file: Any, counts: Counter[str]) -> None:
        self._file, self._counts = file, counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> CountedFile:
        self._file.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._file.__exit__(*details)

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._count(self._file.get_tensor(name))

    def get_slice(self, name: str) -> CountedSlice:
        return CountedSlice(self._file.get_slice(name), self._count)

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        self._counts["bytes"] += tensor.nbytes
        return tensor


class CountedSlice:
    """A tensor in a file, counted once it is taken."""

    def __init__(self, inner: Any, count: Any) -> None:
        self._inner, self._count = inner, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __getitem__(self, where: Any) -> torch.Tensor:
        taken: torch.Tensor = self._count(self._inner[where])
        return taken


if __name__ == "__main__":
    main()
