"""Train small real runs and record per-item results on a dense grid of step and alpha.

    python tests/bench/record_tables.py [full] [lora] [oft] [miss] [dora] [lora-profiles] ...

Each method trains the demo's model on the demo's target and is measured on all items, at each
checkpoint and 22 alphas. Tables of profiles hold the last checkpoint only: the alphas, and a grid
of `depth` and `modules` where each end goes from 0 to 1.2. Four runs that go wrong are measured on
half of the items at six checkpoints and 11 alphas: `small` learns six examples by heart and gains
little; the learning rate of the others is too high: `early` diverges after its first checkpoints,
`overshot` is best at its second, `cliff` falls off a cliff along alpha. `tables/NAME.npz` holds
one bit an item. `replay.py` samples items from it, so each point's true score is known: the mean
of all.

The search's settings were tuned on full, lora, oft and overshot; miss, dora, small, early and
cliff are held out.
"""

from __future__ import annotations

import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backtrack.demo import ASSETS
from backtrack.evaluate.build import build_objectives
from backtrack.evaluate.torch_model import TorchModel
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.recipe import load_recipe
from backtrack.train.trainers.train import train

if TYPE_CHECKING:
    from collections.abc import Sequence

TABLES = Path(__file__).resolve().parent / "tables"
ALPHAS = (*(round(0.05 * i, 2) for i in range(1, 21)), 1.1, 1.2)
FEW_ALPHAS = (*(round(0.1 * i, 1) for i in range(1, 11)), 1.2)
OFT = "method={kind: oft, oft_block_size: 32, target_modules: all-linear}"
METHODS: dict[str, tuple[str, ...]] = {
    "full": ("method={kind: full}", "sft.learning_rate=3e-4"),
    "lora": (),
    "miss": ("method={kind: miss, r: 16, target_modules: all-linear}", "sft.learning_rate=1e-3"),
    "dora": ("method.use_dora=true", "seed=1"),
    "oft": (OFT, "sft.learning_rate=1e-3"),
}
GONE_WRONG: dict[str, tuple[str, ...]] = {
    "small": (
        "data.split=train[:6]",
        "sft.learning_rate=2e-3",
        "sft.max_steps=120",
        "trajectory.every_steps=20",
    ),
    "early": (
        "seed=1",
        "sft.learning_rate=1e-2",
        "sft.max_steps=120",
        "trajectory.every_steps=20",
    ),
    "overshot": (OFT, "sft.learning_rate=4e-3", "trajectory.every_steps=40"),
    "cliff": ("sft.learning_rate=8e-3", "trajectory.every_steps=40"),
}
PROFILED = {f"{name}-profiles": METHODS[name] for name in ("full", "lora")}
ENDS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
"""Alphas of the first and the last block, or of attention and MLP."""


def grid_of(name: str, steps: Sequence[int]) -> list[Point]:
    """The points to measure of a table, the base first."""
    if name not in PROFILED:
        alphas = FEW_ALPHAS if name in GONE_WRONG else ALPHAS
        return [Point.base(), *(Point(step=step, alpha=a) for step in steps for a in alphas)]
    last = steps[-1]
    uniform = [Point(step=last, alpha=alpha) for alpha in ALPHAS]
    profiled = [
        Point(
            step=last,
            alpha=max(ends),
            profile=f"{kind}({ends[0] / max(ends):g},{ends[1] / max(ends):g})",
        )
        for kind in ("depth", "modules")
        for ends in product(ENDS, ENDS)
        if ends[0] != ends[1]
    ]
    return [Point.base(), *uniform, *profiled]


def record(method: str) -> None:
    """Train a method, measure its grid and write its table."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"output={folder}", "trajectory.every_steps=30"]
        overrides += (METHODS | GONE_WRONG | PROFILED)[method]
        recipe = load_recipe(ASSETS / "recipe.yaml", overrides)
        run = train(recipe)
        placement = Placement(run)
        objectives = build_objectives(recipe, placement.tokenizer)
        model = TorchModel(placement.model, placement.tokenizer, recipe.search.batch_size)
        points = grid_of(method, run.steps)
        every = 2 if method in GONE_WRONG else 1
        scores: dict[str, list[Any]] = {o.info.name: [] for o in objectives}
        distances = []
        for point in points:
            begin = time.perf_counter()
            placement.place(point)
            distances.append(placement.distance(point))
            for o in objectives:
                scores[o.info.name].append(o.measure(model, o.item_ids[::every]))
            said = {name: round(100 * float(np.mean(s[-1])), 1) for name, s in scores.items()}
            print(f"{method} {point}: {said}, {time.perf_counter() - begin:.1f} s", flush=True)
        write(method, points, distances, scores)


def write(
    method: str, points: Sequence[Point], distances: Sequence[float], scores: dict[str, list[Any]]
) -> None:
    """A table as a file: points, distances, and a bit for each point and item."""
    TABLES.mkdir(exist_ok=True)
    bits: dict[str, Any] = {
        f"bits_{n}": np.packbits(np.array(s) > 0.5, axis=1) for n, s in scores.items()
    }
    np.savez_compressed(
        TABLES / f"{method}.npz",
        steps=np.array([p.step for p in points]),
        alphas=np.array([p.alpha for p in points]),
        profiles=np.array([p.profile for p in points]),
        distances=np.array(distances),
        num_items=np.array([len(s[0]) for s in scores.values()]),
        **bits,
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or [*METHODS, *GONE_WRONG, *PROFILED]:
        record(name)
