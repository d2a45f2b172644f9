"""Cost of saving a trajectory: stall per save, and whole-run time compared with stock saving.

python tests/bench/saving.py

On a CPU the trained model is tiny-en of ../shared or, without it, the embedded one; on a GPU a
model with 1 GB of trainable weights is also saved. Figures are medians over interleaved rounds,
and each ratio is from one process. On a shared machine wall time includes the load of others, so
the process's own CPU time and the lower quartile of the stalls are printed beside it.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from backtrack.recipe import TrajectorySection
from backtrack.run.directory import Run
from backtrack.train.trajectory.callback import TrajectoryCallback
from backtrack.train.trajectory.live_weights import LiveWeights
from backtrack.train.trajectory.new_run import create_run
from backtrack.train.trajectory.saver import CheckpointSaver

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT.parent / "shared" / "models" / "tiny-en"
BASE = TINY if TINY.is_dir() else ROOT / "backtrack" / "assets" / "demo" / "model"
NUM_STEPS = 20
ROUNDS = 5
TOKENS = 64


def make_model(*, is_lora: bool) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype="auto")
    if not is_lora:
        return model
    config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def rows(vocabulary: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, min(vocabulary, 60), (64, TOKENS), generator=generator).tolist()
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])


class Stopwatch(TrainerCallback):
    """Wall and CPU seconds from the end of the first step to the end of training, with saves."""

    def __init__(self) -> None:
        self.begin = (0.0, 0.0)
        self.seconds = (0.0, 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        if state.global_step == 1:
            self.begin = (time.perf_counter(), time.process_time())

    def on_train_end(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        wall, own = self.begin
        self.seconds = (time.perf_counter() - wall, time.process_time() - own)


def seconds_of_training(kind: str, *, is_lora: bool) -> tuple[float, float]:
    """Whole-run time with a save every step: `none`, `ours`, or `stock`, weights only."""
    folder = Path(tempfile.mkdtemp())
    model = make_model(is_lora=is_lora)
    watch = Stopwatch()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "out"), use_cpu=True, report_to="none", disable_tqdm=True,
            save_strategy="steps" if kind == "stock" else "no", save_steps=1,
            save_only_model=True, save_total_limit=None, logging_strategy="no",
            per_device_train_batch_size=8, max_steps=NUM_STEPS, learning_rate=1e-5,
            dataloader_pin_memory=False,
        ),
        train_dataset=rows(model.config.vocab_size),
        # The stopwatch stops last, once all is on disk.
        callbacks=[*([TrajectoryCallback(folder / "run", 1)] if kind == "ours" else []), watch],
    )  # fmt: skip
    trainer.train()
    shutil.rmtree(folder)
    return watch.seconds


def whole_run(*, is_lora: bool) -> None:
    kinds = ("none", "ours", "stock")
    seconds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind in kinds:
            seconds[kind].append(seconds_of_training(kind, is_lora=is_lora))
    (none, ours, stock), (own_none, own_ours, own_stock) = (
        [statistics.median(pair[which] for pair in seconds[kind]) for kind in kinds]
        for which in (0, 1)
    )
    name = "LoRA" if is_lora else "full"
    bound = " (bound 1.10)" if is_lora else ""
    print(
        f"{name}, {NUM_STEPS} steps of {none / (NUM_STEPS - 1) * 1000:.0f} ms, a save every step "
        f"over none: ours {ours / none:.2f}{bound}, stock Trainer {stock / none:.2f}; processor "
        f"time: ours {own_ours / own_none:.2f}, stock {own_stock / own_none:.2f}",
        flush=True,
    )


def stall(name: str, model: Any, *, every_seconds: float, num_saves: int = 60) -> None:
    """Time a save holds up the caller, over a plain copy of the bytes into allocated memory."""
    folder = Path(tempfile.mkdtemp())
    run = create_run(folder / "run", model, None, seed=0)
    saver = CheckpointSaver(run, TrajectorySection(every_steps=1), model)
    live = LiveWeights(model, is_resized=False, dtype=None).tensors
    bare = bare_copy(live)
    ours, copies = [], []
    for step in range(1, num_saves + 1):
        nudge(live)
        copies.append(timed(bare))
        ours.append(timed(partial(saver.step, step)))
        time.sleep(every_seconds)
    saver.close()
    held, copy = statistics.median(ours[6:]), statistics.median(copies[6:])
    num_bytes = sum(t.numel() * t.element_size() for t in live.values())
    entries = Run.open(run.path).entries()
    share = sum(entry.num_bytes for entry in entries) / num_bytes / len(entries)
    print(
        f"{name}: {num_bytes / 1e6:.1f} MB in {len(live)} tensors; a save holds training "
        f"{held * 1000:.2f} ms, a bare copy {copy * 1000:.2f} ms, ratio {held / copy:.2f} "
        f"(bound 2), of lower quartiles {quartile(ours) / quartile(copies):.2f}; "
        f"on the disk {share:.2f} of its bytes",
        flush=True,
    )
    shutil.rmtree(folder)


def quartile(times: list[float]) -> float:
    return statistics.quantiles(times[6:], n=4)[0]


def bare_copy(live: dict[str, torch.Tensor]) -> Callable[[], None]:
    sources = [tensor.detach() for tensor in live.values()]
    into = [torch.empty_like(tensor) for tensor in sources]

    def copy() -> None:
        torch._foreach_copy_(into, sources)

    return copy


@torch.no_grad()
def nudge(live: dict[str, torch.Tensor]) -> None:
    """Change the weights slightly, as a step does."""
    for tensor in live.values():
        if tensor.requires_grad:
            tensor.mul_(1.001)


def timed(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if torch.cuda.is_available():
        # Work of the current stream for the copy holds training up too; the side stream does not.
        torch.cuda.current_stream().synchronize()
    return time.perf_counter() - begin


def large_model(device: str) -> Any:
    """1 GB of bf16 weights on a GPU, a fifth of it on a CPU."""
    layers = 20 if device == "cuda" else 4
    config = LlamaConfig(
        hidden_size=1536, intermediate_size=4096, num_hidden_layers=layers, vocab_size=4096,
        num_attention_heads=12, num_key_value_heads=12,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    return model.to(torch.bfloat16).to(device)


def lora(model: Any) -> PeftModel:
    config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def main() -> None:
    torch.set_num_threads(1)  # the writer thread uses the other core
    stall("LoRA r16 on a small model", make_model(is_lora=True), every_seconds=0.1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stall("LoRA r16 on a larger one", lora(large_model(device)), every_seconds=0.1)
    stall("full, a larger one", large_model(device), every_seconds=3.0, num_saves=12)
    whole_run(is_lora=True)
    whole_run(is_lora=False)


if __name__ == "__main__":
    main()
