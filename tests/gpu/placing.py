"""How fast a model moves along its path, and how much memory it takes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from backtrack.evaluate.language_model import CompletionLimits, ScoredSequence
from backtrack.evaluate.torch_model import TorchModel
from backtrack.exporter import AsForm, export
from backtrack.free_memory import free_bytes
from backtrack.path.backends.end_storage import store_end
from backtrack.path.backends.pinned_memory import empty_pinned
from backtrack.path.models import loading
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.records.record import Form
from tests.bench.memory import Watch
from tests.bench.placement import copy_all, merged_seconds, stock_seconds
from tests.gpu.session import GIB, Figure, Method, Session, differences

POINT = Point(step=1, alpha=0.37)


def line_speed(session: Session) -> Iterator[Figure]:
    """Whole models on the line: bytes moved a second, against a copy on the device."""
    for keep in ("device", "pinned"):
        session.clean()
        placement = Placement(session.medium.run("full"), device=str(session.device), keep=keep)
        live = [parameter.data for parameter in placement.model.parameters()]
        other = [torch.empty_like(tensor) for tensor in live]
        num_bytes = sum(tensor.nbytes for tensor in live)
        copied = 2 * num_bytes / session.clock.median(lambda: copy_all(live, other))  # noqa: B023
        placed = 3 * num_bytes / session.clock.median(lambda: placement.place(POINT))  # noqa: B023
        yield Figure(f"copy on the device, GB/s ({keep})", copied / 1e9)
        limit = 0.8 if keep == "device" else None
        yield Figure(f"line, ends {keep}, of that copy", placed / copied, at_least=limit)


def adapter_speed(session: Session) -> Iterator[Figure]:
    """LoRA r16 and OFT b32: merged against PEFT's own merge, attached against a copy."""
    for method in ("lora", "oft"):
        run = session.medium.run(method)
        ours, theirs = merged_seconds(run, session.clock), stock_seconds(run, session.clock)
        yield Figure(f"{method} merged, of PEFT's merge", ours / theirs, at_most=1.0)
        session.clean()
        placement = Placement(run, form="attached", device=str(session.device))
        seconds = session.clock.median(lambda: placement.place(POINT))  # noqa: B023
        yield Figure(f"{method} attached, ms", seconds * 1e3, at_most=20)


def same_points(session: Session) -> Iterator[Figure]:
    """A point is the same wherever the ends are stored, in any order, and from another stream."""
    reference = Placement(session.medium.run("full"), device=str(session.device))
    reference.place(POINT)
    wanted = {name: tensor.clone() for name, tensor in reference.moving.items()}
    for keep in ("pinned", "mapped"):
        placement = Placement(session.medium.run("full"), device=str(session.device), keep=keep)
        placement.place(Point(step=1, alpha=1.3))
        placement.place(POINT)
        yield differences(f"tensors that differ, ends {keep}", num_different(placement, wanted))
    if session.is_gpu:
        stream = torch.cuda.Stream(session.device)
        wrong = 0
        for _ in range(session.scale.num_rounds // 10):
            with torch.cuda.stream(stream):
                placement.place(Point.base())
                placement.place(POINT)
            torch.cuda.current_stream(session.device).wait_stream(stream)
            wrong += num_different(placement, wanted)
        yield differences("tensors that differ on a side stream", wrong)


def num_different(placement: Placement, wanted: dict[str, torch.Tensor]) -> int:
    return sum(not torch.equal(t, wanted[name]) for name, t in placement.moving.items())


def memory_is_counted(session: Session) -> Iterator[Figure]:
    """Memory that torch holds in reserve is free, and what is let go is freed."""
    session.require_gpu()
    session.clean()
    before = free_bytes(session.device)
    block = torch.empty(4 * GIB, dtype=torch.uint8, device=session.device)
    del block
    yield Figure("GiB lost to torch's reserve", (before - free_bytes(session.device)) / GIB, 0.1)
    num_bytes = session.medium.num_bytes
    start = torch.cuda.memory_allocated(session.device)
    placement = Placement(session.medium.run("lora"), device=str(session.device))
    placement.place(POINT)
    del placement
    left = torch.cuda.memory_allocated(session.device) - start
    yield Figure("bases left after `del placement`", left / num_bytes, at_most=0.02)


def pinned_memory(session: Session) -> Iterator[Figure]:
    """Pinned memory is exact in size, and copied from at the bus's speed."""
    num_bytes = 9 * GIB // 16 if session.is_gpu else 1 << 20  # a power of two would be 1 GiB
    with Watch() as watch:
        pinned = empty_pinned(torch.Size([num_bytes]), torch.uint8).fill_(1)
        yield Figure("host memory, of the bytes asked for", watch.now() / num_bytes, 1.05)
    if not session.is_gpu:
        return
    yield differences("buffers that are not page-locked", int(not pinned.is_pinned()))
    fast, slow = (copy_seconds(session, t) for t in (pinned, torch.ones_like(pinned)))
    yield Figure("pinned copy, GB/s", num_bytes / fast / 1e9)
    yield Figure("pinned copy, times an ordinary one", slow / fast, at_least=1.0)
    del pinned
    again = empty_pinned(torch.Size([num_bytes]), torch.uint8)
    yield differences(
        "buffers not page-locked after another was freed", int(not again.is_pinned())
    )


def copy_seconds(session: Session, source: torch.Tensor) -> float:
    target = torch.empty_like(source, device=session.device)
    return session.clock.median(lambda: target.copy_(source, non_blocking=True))


def mapped_memory(session: Session) -> Iterator[Figure]:
    """Ends in a file take neither the device's memory nor the host's."""
    live = {n: torch.ones(1 << 20, device=session.device) for n in map(str, range(32))}
    num_bytes = sum(tensor.nbytes for tensor in live.values())
    with Watch() as watch:
        store_end(live, "mapped", live)
        yield Figure("host memory while mapping, of the end", watch.peak() / num_bytes, 1.2)


ROWS: dict[str, tuple[str, dict[str, Any], float]] = {
    "attached lora": ("lora", {"form": "attached"}, 1.1),
    "merged lora": ("lora", {"form": "merged"}, 2.2),
    "lora on the line": ("lora", {"form": "merged", "curve": "line"}, 2.2),
    "whole models": ("full", {}, 3.2),
    "whole models, ends pinned": ("full", {"keep": "pinned"}, 1.2),
}
"""Method, arguments of the placement, and its budget in copies of the base."""


def peaks(session: Session) -> Iterator[Figure]:
    """Peak of the device's memory at 7B shape: opening, three points, a distance."""
    for name, (method, given, budget) in ROWS.items():
        run = session.large.run(method)
        peak = session.peak(partial(visit, run, session.device, given))
        yield Figure(f"bases at the peak, {name}", peak / session.large.num_bytes, budget)


def visit(run: Any, device: torch.device, given: dict[str, Any]) -> Placement:
    placement = Placement(run, device=str(device), **given)
    for alpha in (0.37, 1.0, 0.0):
        placement.place(Point(step=1, alpha=alpha))
    placement.distance(Point(step=1, alpha=0.5))
    return placement


def export_peaks(session: Session) -> Iterator[Figure]:
    """An export takes what the placed model takes."""
    cases: list[tuple[AsForm, Method, float]] = [("adapter", "lora", 1.2), ("merged", "full", 3.2)]
    for form, method, budget in cases:
        run, folder = session.large.run(method), session.folder / f"large-{form}"
        work = partial(export, run, POINT, folder, form=form, device=str(session.device))
        yield Figure(
            f"bases at the peak, export {form}",
            session.peak(work) / session.large.num_bytes,
            budget,
        )


def several_cards(session: Session) -> Iterator[Figure]:
    """A model spread over two cards moves as on one."""
    session.require_gpu(2)
    cases: list[tuple[Method, Form]] = [
        ("lora", "attached"), ("lora", "merged"), ("full", "merged"),
    ]  # fmt: skip
    for method, form in cases:
        run = session.medium.run(method)
        with patch.object(loading, "free_bytes", lambda _device: 0):
            spread = Placement(run, form=form, device="cuda")
        devices = {parameter.device for parameter in spread.model.parameters()}
        yield Figure(f"cards, {method} {form}", len(devices), at_least=2, is_exact=True)
        spread.place(POINT)
        single = Placement(run, form=form, device="cuda:0")
        single.place(POINT)
        wanted = {name: tensor.cpu() for name, tensor in single.moving.items()}
        wrong = sum(not torch.equal(t.cpu(), wanted[n]) for n, t in spread.moving.items())
        yield differences("tensors that differ from those on one card", wrong)
        model = TorchModel(spread.model, spread.tokenizer, 2)
        model.score([ScoredSequence(list(range(3, 15)), 4)])
        model.complete([list(range(3, 15))], CompletionLimits(4, ()))


CHECKS = (
    line_speed, adapter_speed, same_points, memory_is_counted, pinned_memory, mapped_memory,
    several_cards,
)  # fmt: skip
LARGE_CHECKS = (peaks, export_peaks)
