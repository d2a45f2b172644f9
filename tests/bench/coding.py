"""Size and speed of coded checkpoints: full fine-tuning at rate 1e-5, saved every 10 steps.

python tests/bench/coding.py 160

Trains tiny-en of ../shared (the embedded model without it) with fp32 master weights, stored
in bf16, on real text. XOR instead of the difference is measured on the same weights.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from backtrack.run import codec
from backtrack.run.bits import Bits, bits_of
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.run.coded_chain import chain_steps
from backtrack.run.directory import Run
from backtrack.train.trajectory.callback import TrajectoryCallback
from tests.bench.saving import BASE, ROOT

TEXT = ROOT.parent / "shared" / "data" / "openai" / "gsm8k" / "main" / "train.jsonl"
EMBEDDED = ROOT / "backtrack" / "assets" / "demo" / "train.jsonl"


def token_rows(tokenizer: Any) -> Dataset:
    path = TEXT if TEXT.is_file() else EMBEDDED
    lines = [json.loads(line) for line in path.read_text().split("\n")[:3000] if line]
    text = "\n".join(" ".join(str(value) for value in line.values()) for line in lines)
    ids = tokenizer(text).input_ids
    rows = [ids[begin : begin + 128] for begin in range(0, len(ids) - 128, 128)]
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])


def train(folder: Path, num_steps: int) -> Run:
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")
    callback = TrajectoryCallback(folder / "run", 10, dtype="bfloat16")
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "out"), use_cpu=True, report_to="none", disable_tqdm=True,
            save_strategy="no", logging_strategy="no", per_device_train_batch_size=8,
            max_steps=num_steps, learning_rate=1e-5, lr_scheduler_type="constant",
            dataloader_pin_memory=False,
        ),
        train_dataset=token_rows(AutoTokenizer.from_pretrained(BASE)),
        callbacks=[callback],
    ).train()  # fmt: skip
    return callback.run


def sizes(run: Run) -> None:
    raw = sum(t.numel() * 2 for t in read_checkpoint(run, run.steps[0]).values())
    keys = [e.num_bytes for e in run.entries() if e.reference is None]
    deltas = [e.num_bytes for e in run.entries() if e.reference is not None]
    total = sum(keys) + sum(deltas)
    print(
        f"{len(run.steps)} checkpoints of {raw / 1e6:.1f} MB: coded over raw bf16 "
        f"{total / raw / len(run.steps):.3f} (bound 0.30); key frames "
        f"{statistics.mean(keys) / raw:.3f}, differences {statistics.mean(deltas) / raw:.3f}"
    )
    old, new = (as_bits(run, step) for step in run.steps[-2:])
    compressor = zstandard.ZstdCompressor(level=1)
    xor = sum(
        len(compressor.compress(plane.tobytes()))
        for name in new
        for plane in (new[name].values ^ old[name].values).view(np.uint8).reshape(-1, 2).T
    )
    print(f"the last difference, zigzag over XOR: {deltas[-1] / xor:.3f} (XOR {xor / raw:.3f})")


def as_bits(run: Run, step: int) -> dict[str, Bits]:
    return {name: bits_of(tensor) for name, tensor in read_checkpoint(run, step).items()}


def speed(run: Run, folder: Path) -> None:
    """On one thread, in megabytes of bf16 a second."""
    old, new = (as_bits(run, step) for step in run.steps[-2:])
    raw = sum(bits.num_bytes for bits in new.values()) / 1e6
    codec._NUM_THREADS = 1
    key, delta = folder / "key", folder / "delta"
    encode_key = best(lambda: codec.encode(key, old))
    encode_delta = best(lambda: codec.encode(delta, new, reference=old))
    chain = [codec.read_table(key), codec.read_table(delta)]
    decode_key = best(lambda: codec.decode(chain[:1]))
    decode_delta = best(lambda: codec.decode(chain)) - decode_key
    print(
        f"MB/s a core: key frame encoded {raw / encode_key:.0f}, decoded {raw / decode_key:.0f}; "
        f"difference encoded {raw / encode_delta:.0f}, decoded {raw / decode_delta:.0f}"
    )


def best(work: Any) -> float:
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def access(run: Run) -> None:
    read_all = [
        read_checkpoint(run, step) for step in run.steps
    ]  # hashes are checked once, as in any use
    del read_all
    times = {step: best(lambda s=step: read_checkpoint(run, s)) for step in run.steps}
    key = statistics.median(times[s] for s in run.steps if len(chain_steps(run, s)) == 1)
    print(
        f"any step over a key frame: mean {statistics.mean(times.values()) / key:.2f}, at most "
        f"{max(times.values()) / key:.2f} (chains of up to "
        f"{max(len(chain_steps(run, s)) for s in run.steps)})"
    )


def lock_held(folder: Path) -> None:
    """How long another thread is blocked while 200 MB are coded and written."""
    tensors = {"w": bits_of(torch.randn(100_000_000).bfloat16())}
    gaps = []
    worker = threading.Thread(target=codec.encode, args=(folder / "large", tensors))
    worker.start()
    last = time.perf_counter()
    while worker.is_alive():
        time.sleep(0.001)
        now = time.perf_counter()
        gaps.append(now - last)
        last = now
    late = sorted(gaps)[len(gaps) * 99 // 100]
    print(
        "a thread that wakes each millisecond beside the coding: median "
        f"{statistics.median(gaps) * 1e3:.1f} ms, 99th percentile {late * 1e3:.1f} ms"
    )


def main(num_steps: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = train(folder, num_steps)
        sizes(run)
        speed(run, folder)
        access(run)
        lock_held(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 160)
