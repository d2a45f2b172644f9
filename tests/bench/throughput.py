"""Training throughput by recipe with our callback over the same training without it.

    python -m tests.bench.throughput [--rounds 3] [--steps 40]

The embedded demo's model by LoRA, supervised and by GRPO, a checkpoint every ten steps. Rounds
take turns in one process; figures are medians of steps a second with over without, by wall time
and by the process's own time on the processor, which other users of the machine move less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from backtrack.demo import ASSETS
from backtrack.recipe import Recipe, load_recipe
from backtrack.train.trainers.build import build_trainer
from backtrack.train.trajectory.callback import TrajectoryCallback
from tests.bench.rewards import GRPO


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name, recipe in _recipes(asked.steps).items():
        times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(asked.rounds):
                for is_kept in (False, True) if turn % 2 else (True, False):
                    place = Path(folder) / f"{turn}-{is_kept}"
                    times[is_kept].append(_seconds(recipe, place, is_kept=is_kept))
        for kind, i in (("wall", 0), ("processor", 1)):
            with_it, without = (statistics.median(t[i] for t in times[k]) for k in (True, False))
            print(
                f"{name:<5} {kind:<10} steps a second with over without: {without / with_it:.3f}"
            )


def _recipes(steps: int) -> dict[str, Recipe]:
    raw = load_recipe(ASSETS / "recipe.yaml").model_dump(mode="json")
    sft = {**raw["sft"], "max_steps": 2 * steps, "save_strategy": "no"}
    grpo = {**GRPO, "max_steps": max(steps // 4, 2), "per_device_train_batch_size": 64}
    by_reward = {
        "sft": {}, "grpo": grpo, "rewards": [{"kind": "numeric", "answer": "{completion}"}],
        "data": {**raw["data"], "prompt": "{prompt}"},
    }  # fmt: skip
    return {
        "SFT": Recipe.model_validate({**raw, "sft": sft}),
        "GRPO": Recipe.model_validate({**raw, **by_reward}),
    }


def _seconds(recipe: Recipe, place: Path, *, is_kept: bool) -> tuple[float, float]:
    """Wall and processor seconds of one training, building it not counted."""
    trainer: Any = build_trainer(recipe, place)
    if is_kept:
        run = place / "run"
        trainer.add_callback(TrajectoryCallback(run, every_steps=10, base=recipe.base.model))
    wall, processor = time.perf_counter(), time.process_time()
    trainer.train()
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
