"""Every supported PEFT method on its path: how exact are its ends, how slow is it attached?

    python tests/bench/tuners.py [NAME ...]

Prints a table in Markdown, fp32 and bf16: the largest difference of probe logits at alpha 0 to the
base, at alpha 1 to stock PEFT, of both ends after 50 visits in random order, and of an export at
alpha 0.37 that stock libraries load. Differences are relative to the largest logit. Also the
method's default backend and curve, how far the checkpoint's logits are from the base's, and the
time of an attached forward pass relative to the base's.
"""

from __future__ import annotations

import logging
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from backtrack.exporter import export
from backtrack.path.adapters.tuners import tuner_of
from backtrack.path.models.loading import probe, read_adapter_config
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.run.directory import Run
from tests.models import make_base, make_peft_run
from tests.path.tuners import configs

ROUNDS = 25


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    names = sys.argv[1:] or list(configs())
    print("| method | type | placement | moved | alpha 0 | alpha 1 | 50 visits | export | cost |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", "bfloat16"):
            base = make_base(Path(folder) / dtype, dtype=dtype, width=64)
            for name in names:
                torch.manual_seed(0)
                run = make_peft_run(Path(folder) / f"{name}-{dtype}", base, configs()[name])
                print(row(name, dtype, run, base), flush=True)


def row(name: str, dtype: str, run: Run, base: Path) -> str:
    start = probe(load(base))
    stock = PeftModel.from_pretrained(load(base), str(run.folder(20))).eval()
    end = probe(stock)
    placement = Placement(run)
    ends = ends_of(placement, start, end)
    visits = random.Random(name)
    for _ in range(50):
        alpha = visits.choice([0.0, 1.0, visits.random()])
        placement.place(Point(step=visits.choice(run.steps), alpha=alpha))
    after = max(ends_of(placement, start, end))
    exported = export_gap(run, placement, base)
    cells = [
        name, dtype, f"{placement.form}, {placement.curve}", f"{share(end, start):.2f}",
        *(f"{value:.1g}" for value in (*ends, after, exported)), cost(run, stock, load(base)),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def load(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base).eval()


def share(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def ends_of(placement: Placement, start: torch.Tensor, end: torch.Tensor) -> tuple[float, float]:
    placement.place(Point(step=20, alpha=0.0))
    at_base = share(probe(placement.model), start)
    placement.place(Point(step=20, alpha=1.0))
    return at_base, share(probe(placement.model), end)


def export_gap(run: Run, placement: Placement, base: Path) -> float:
    point = Point(step=20, alpha=0.37)
    placement.place(point)
    with tempfile.TemporaryDirectory() as out:
        form = export(run, point, Path(out) / "out").form
        loaded = (
            PeftModel.from_pretrained(load(base), f"{out}/out")
            if form == "adapter"
            else load(Path(out) / "out")
        )
        return share(probe(loaded.eval()), probe(placement.model))


def cost(run: Run, stock: Any, base: Any) -> str:
    """Fastest attached forward pass over the base's fastest, in turns: load only adds time."""
    if not tuner_of(read_adapter_config(run.folder(20))).has_native:
        return "-"
    times: dict[str, list[float]] = {"base": [], "attached": []}
    for _ in range(ROUNDS):
        for which, model in (("base", base), ("attached", stock)):
            begin = time.perf_counter()
            probe(model)
            times[which].append(time.perf_counter() - begin)
    return f"{min(times['attached']) / min(times['base']):.1f}"


if __name__ == "__main__":
    main()
