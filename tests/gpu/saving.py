"""Checkpoints while training: right under stress, and cheap."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState, TrainingArguments

from backtrack.run.bits import tensor_of
from backtrack.run.checkpoint_reader import read_checkpoint
from backtrack.run.directory import Run
from backtrack.train.trajectory import snapshot
from backtrack.train.trajectory.callback import TrajectoryCallback
from backtrack.train.trajectory.snapshot import Snapshots
from tests.gpu.session import CONFIGS, GIB, Figure, Session, differences

Tensors = dict[str, torch.Tensor]


def under_stress(session: Session) -> Iterator[Figure]:
    """Weights change, and memory is taken, right after each copy is begun."""
    for dtype in (None, torch.bfloat16):
        for free, way in ((1 << 60, "staged"), (0, "direct")):
            wrong = stressed(session, dtype, free)
            name = "own dtype" if dtype is None else "to bfloat16"
            yield differences(f"tensors that differ, {way}, {name}", wrong)


def stressed(session: Session, dtype: torch.dtype | None, free: int) -> int:
    snapshots, wrong = Snapshots(dtype), 0
    width = 1024 if session.is_gpu else 16
    live = {f"t{i}": torch.randn(width, width + i, device=session.device) for i in range(16)}
    live["turned"] = live["t3"].T
    with patch.object(snapshot, "free_bytes", lambda _device: free):
        for _ in range(session.scale.num_rounds):
            wanted = {n: (t.to(dtype) if dtype else t).clone() for n, t in live.items()}
            taken = snapshots.take(live)
            for tensor in live.values():
                tensor.normal_()
            torch.empty(width << 16, device=session.device).normal_()  # tempts the allocator
            wrong += num_wrong(taken.bits(), wanted)
            taken.release()
    return wrong


def num_wrong(found: Any, wanted: Tensors) -> int:
    return sum(not torch.equal(tensor_of(found[name]), wanted[name].cpu()) for name in wanted)


def stall(session: Session) -> Iterator[Figure]:
    """A save of a whole model holds the device up by a copy on it, and goes on beside its work."""
    session.require_gpu()
    model: Any = AutoModelForCausalLM.from_pretrained(session.medium.base)
    model.to(session.device)
    live = {name: parameter.detach() for name, parameter in model.named_parameters()}
    num_bytes = sum(tensor.nbytes for tensor in live.values())
    snapshots = Snapshots()
    snapshots.take(live).release()  # allocates the buffers
    copy = session.clock.median(lambda: [tensor.clone() for tensor in live.values()])
    held, whole = [], []
    for _ in range(7):
        session.clock.wait()
        begin = time.perf_counter()
        taken = snapshots.take(live)
        torch.cuda.current_stream(session.device).synchronize()
        held.append(time.perf_counter() - begin)
        taken.bits()
        whole.append(time.perf_counter() - begin)
        taken.release()
    yield Figure("a save holds the device up, ms", statistics.median(held) * 1e3)
    yield Figure("the same, copies on the device", statistics.median(held) / copy, at_most=3.0)
    yield Figure("to host memory, GB/s", num_bytes / statistics.median(whole) / 1e9)
    rise = session.peak(lambda: snapshots.take(live).bits())
    yield Figure("models on the device while staged", rise / num_bytes, at_most=1.05)


def without_room(session: Session) -> Iterator[Figure]:
    """Where a copy does not fit, a save goes straight to host memory."""
    session.require_gpu()
    session.clean()
    live = {"w": torch.randn(GIB // 4, device=session.device)}
    free = torch.cuda.mem_get_info(session.device)[0]
    block = torch.empty(free - GIB // 2, dtype=torch.uint8, device=session.device)
    wanted = live["w"].cpu()
    taken = Snapshots().take(live)
    live["w"].zero_()
    yield differences("tensors that differ", num_wrong(taken.bits(), {"w": wanted}))
    del block


def training(session: Session) -> Iterator[Figure]:
    """LoRA r16 with a checkpoint every step: each is the live weights, and steps take as long."""
    num_steps = 16 if session.is_gpu else 3
    without, _ = trained(session, None, num_steps)
    run = session.folder / "trained"
    seconds, weights = trained(session, run, num_steps)
    wrong = 0
    for step, wanted in weights.items():
        found = read_checkpoint(Run.open(run), step)
        wrong += found.keys() != wanted.keys()
        wrong += sum(not torch.equal(found[name], wanted[name].cpu()) for name in wanted)
    yield differences("tensors of checkpoints that differ from the live ones", wrong)
    yield Figure("ms a step without saving", without * 1e3)
    yield Figure("a step with a save, of one without", seconds / without, at_most=1.10)


def trained(
    session: Session, path: Path | None, num_steps: int
) -> tuple[float, dict[int, Tensors]]:
    """Median seconds a step, and the live weights after each."""
    torch.manual_seed(0)
    plain: Any = AutoModelForCausalLM.from_pretrained(session.medium.base)
    model: Any = get_peft_model(plain.to(session.device), CONFIGS["lora"]())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    rows, length = (8, 128) if session.is_gpu else (2, 12)
    args = TrainingArguments(
        output_dir=str(session.folder / "unused"), use_cpu=not session.is_gpu, report_to="none"
    )
    state, control = TrainerState(max_steps=num_steps), TrainerControl()
    state.is_world_process_zero = True
    callback = None if path is None else TrajectoryCallback(path, 1, base=session.medium.base)
    if callback:
        callback.on_train_begin(args, state, control, model=model)
    seconds, weights = [], {}
    for step in range(1, num_steps + 1):
        session.clock.wait()
        begin = time.perf_counter()
        ids = torch.randint(3, 60, (rows, length), device=session.device)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state.global_step = step
        named = get_peft_model_state_dict(model, save_embedding_layers=False)
        weights[step] = {name: tensor.detach().clone() for name, tensor in named.items()}
        if callback:
            callback.on_step_end(args, state, control, model=model)
        session.clock.wait()
        seconds.append(time.perf_counter() - begin)
    if callback:
        callback.on_train_end(args, state, control, model=model)
    return statistics.median(seconds[num_steps // 4 :]), weights


CHECKS = (under_stress, stall, without_room, training)
