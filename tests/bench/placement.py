"""Time of placing a model at a point, compared with a plain copy of the same tensors.

    python tests/bench/placement.py [--device cuda] [--layers 8] [--width 2048] [--dtype bfloat16]

Creates a Llama-shaped model with random weights (1.1 GB in bf16 by default) and runs of it: whole
models, LoRA r16, OFT b32. Prints, as medians of several placements in one process:

    line      merged, whole models: bytes read and written a second, relative to `Tensor.copy_` on
              the same tensors (the design requires 0.8); on a CPU also on tensors in its cache,
              where arithmetic alone is the bound
    lora, oft merged on their native curve: time relative to PEFT's `merge_adapter`
    attached  time to set the handles, relative to a copy of the adapter's bytes
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, OFTConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from backtrack.path.curves import line
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.records import BaseModelReference, Manifest, Method
from backtrack.records.record import now
from backtrack.run.checkpoint_writer import write_checkpoint
from backtrack.run.directory import Run
from tests.models import jitter, make_tokenizer

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VISITS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        run_benchmarks(Path(folder), options)


def run_benchmarks(folder: Path, options: argparse.Namespace) -> None:
    base = make_model(folder / "base", options)
    clock = Clock(options.device)
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    print(f"model: {size / 1e9:.2f} GB in {options.dtype} on {options.device}")
    print_line(full_run(folder / "full", base), clock)
    if options.device == "cpu":
        print_bound(getattr(torch, options.dtype), clock)
    for name, config in (
        ("lora r16", LoraConfig(task_type="CAUSAL_LM", r=16, target_modules=LINEAR)),
        ("oft b32", OFTConfig(task_type="CAUSAL_LM", oft_block_size=32, target_modules=LINEAR)),
    ):
        run = adapter_run(folder / name.replace(" ", "-"), base, config, options.device)
        print_merged(name, run, clock)
        print_attached(name, run, clock)


class Clock:
    """Wall time of a call, including the device's work."""

    def __init__(self, device: str) -> None:
        self.device = device

    def median(self, call: Callable[[], Any]) -> float:
        call()
        return statistics.median(self.once(call) for _ in range(VISITS))

    def once(self, call: Callable[[], Any]) -> float:
        self.wait()
        begin = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - begin

    def wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def make_model(folder: Path, options: argparse.Namespace) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary, hidden_size=options.width,
        intermediate_size=options.width * 11 // 4, num_hidden_layers=options.layers,
        num_attention_heads=options.width // 128, max_position_embeddings=256,
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device(options.device):
        model: Any = LlamaForCausalLM(config).to(getattr(torch, options.dtype))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def new_run(folder: Path, base: Path, kind: str) -> Run:
    manifest = Manifest(
        name=folder.name, base=BaseModelReference(model=str(base)), method=Method(kind=kind),
        created=now(),
    )  # fmt: skip
    return Run.create(folder, manifest)


def full_run(folder: Path, base: Path) -> Run:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    run = new_run(folder, base, "full")
    write_checkpoint(run, 1, lambda path: model.save_pretrained(path))
    return run


def adapter_run(folder: Path, base: Path, config: Any, device: str) -> Run:
    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(plain.to(device), config)
    jitter(model.cpu(), 0.002, seed=1)
    run = new_run(folder, base, "adapter")
    write_checkpoint(run, 1, lambda path: model.save_pretrained(str(path)))
    return run


def print_line(run: Run, clock: Clock) -> None:
    placement = Placement(run, device=clock.device)
    live = [parameter.data for parameter in placement.model.parameters()]
    other = [torch.empty_like(tensor) for tensor in live]
    num_bytes = sum(tensor.nbytes for tensor in live)
    rates = []
    for _ in range(3):
        copied = 2 * num_bytes / clock.median(lambda: copy_all(live, other))
        placed = 3 * num_bytes / clock.median(lambda: placement.place(Point(step=1, alpha=0.37)))
        rates.append((placed / copied, placed, copied))
    ratio, placed, copied = sorted(rates)[1]
    print(
        f"line: {placed / 1e9:.1f} GB/s moved, copy_ {copied / 1e9:.1f} GB/s, "
        f"ratio {ratio:.2f} (end storage: {placement.keep})"
    )


def print_bound(dtype: torch.dtype, clock: Clock) -> None:
    """The line's arithmetic, without the memory: on tensors that stay in the cache."""
    base, tuned = torch.randn(1 << 17).to(dtype), torch.randn(1 << 17).to(dtype)
    out = torch.empty_like(base)

    def hundred_times() -> None:
        for _ in range(100):
            line(base, tuned, 0.37, out=out)

    seconds = clock.median(hundred_times) / 100
    print(
        f"bound of the line: {base.numel() / seconds / 1e9:.2f} G values/s, "
        f"{3 * base.nbytes / seconds / 1e9:.1f} GB/s on {torch.get_num_threads()} threads"
    )


def copy_all(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


def print_merged(name: str, run: Run, clock: Clock) -> None:
    ours, theirs = merged_seconds(run, clock), stock_seconds(run, clock)
    print(f"{name} merged: {ours:.3f} s, PEFT's merge {theirs:.3f} s, ratio {ours / theirs:.2f}")


def merged_seconds(run: Run, clock: Clock) -> float:
    placement = Placement(run, form="merged", curve="native", device=clock.device)
    return clock.median(lambda: placement.place(Point(step=1, alpha=0.37)))


def stock_seconds(run: Run, clock: Clock) -> float:
    plain: Any = AutoModelForCausalLM.from_pretrained(run.base.model)
    stock: Any = PeftModel.from_pretrained(plain.to(clock.device), str(run.folder(1)))
    times = []
    for _ in range(VISITS):
        times.append(clock.once(stock.merge_adapter))
        stock.unmerge_adapter()
    return statistics.median(times)


def print_attached(name: str, run: Run, clock: Clock) -> None:
    placement = Placement(run, form="attached", device=clock.device)
    backend: Any = placement._backend
    live = [handle.live.data for handle in backend.handles]
    other = [torch.empty_like(tensor) for tensor in live]
    copied = clock.median(lambda: copy_all(live, other))
    placed = clock.median(lambda: placement.place(Point(step=1, alpha=0.37)))
    megabytes = sum(tensor.nbytes for tensor in live) / 1e6
    print(
        f"{name} attached: {placed * 1e3:.2f} ms, a copy of its {megabytes:.0f} MB "
        f"{copied * 1e3:.2f} ms, ratio {placed / copied:.2f}"
    )


if __name__ == "__main__":
    main()
