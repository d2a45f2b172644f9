"""GRPO compared with SFT: the same task, the same base, held-out items.

    python -m tests.bench.rewards [--seeds 3] [--steps 60] [--items 200]

The embedded demo's model learns stories of sums by GRPO (reward: the exact number) and by SFT.
Printed for each seed, in points of 100 with 95% paired bootstrap intervals over items: the reward
of sampled completions in the first and last ten steps, exact match of greedy answers on unseen
stories before and after training, and the loss of the seven other skills. SFT is shown at its end
and at its earliest checkpoint that gained as much as GRPO.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backtrack.demo import ASSETS
from backtrack.evaluate.build import build_objectives
from backtrack.evaluate.torch_model import TorchModel
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.recipe import Recipe, load_recipe
from backtrack.run.directory import Run
from backtrack.selection.stats.bootstrap import interval, resample_means
from backtrack.train.trainers.train import TrainingProgress, train

GRPO = {
    "per_device_train_batch_size": 128, "num_generations": 16, "max_completion_length": 6,
    "temperature": 1.3, "learning_rate": 2e-3, "lr_scheduler_type": "constant",
    "save_strategy": "no",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--items", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            rows.append(_seed(Path(folder), seed, options.steps, options.items))
            print(json.dumps(rows[-1]), flush=True)
    for key in rows[0]:
        values = np.array([row[key][0] for row in rows])
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        print(f"{key:<28} {values.mean():7.1f}  standard error over seeds {error:.1f}")


def _seed(folder: Path, seed: int, steps: int, num_items: int) -> dict[str, Any]:
    recipe = load_recipe(ASSETS / "recipe.yaml")
    base = recipe.model_dump(mode="json")
    common = {**base, "output": str(folder / str(seed)), "seed": seed}
    prompts = {**base["data"], "prompt": "{prompt}"}
    reward = {"kind": "numeric", "answer": "{completion}"}
    by_reward = Recipe.model_validate(
        {
            **common, "name": "grpo", "sft": {}, "data": prompts, "rewards": [reward],
            "grpo": {**GRPO, "max_steps": steps}, "trajectory": {"every_steps": steps},
        }
    )  # fmt: skip
    sft = {**base["sft"], "max_steps": 120, "save_strategy": "no"}
    supervised = Recipe.model_validate(
        {**common, "name": "sft", "sft": sft, "trajectory": {"log_checkpoints": 8}}
    )
    rewards_by_step: dict[int, float] = {}

    def record(progress: TrainingProgress) -> None:
        if progress.reward is not None:
            rewards_by_step[progress.done] = 100 * progress.reward

    begin = time.perf_counter()
    rl = train(by_reward, on_progress=record)
    minutes = (time.perf_counter() - begin) / 60
    rewards = list(rewards_by_step.values())
    scores = _Scores(recipe, num_items)
    before = scores.at(rl, Point.base())
    after = scores.at(rl, rl.final)
    row: dict[str, Any] = {
        "minutes of GRPO": [minutes],
        "reward, first ten steps": _mean(rewards[:10]),
        "reward, last ten steps": _mean(rewards[-10:]),
        "target before": [100 * float(before["stories"].mean())],
        "GRPO: target": scores.change(before, after, "target"),
        "GRPO: general": scores.change(before, after, "general"),
    }
    run = train(supervised)
    scores_by_step = {step: scores.at(run, Point(step=step)) for step in run.steps}
    last = scores_by_step[run.final.step]
    row["SFT at its end: target"] = scores.change(before, last, "target")
    row["SFT at its end: general"] = scores.change(before, last, "general")
    gained = row["GRPO: target"][0]
    equal = [
        s
        for s in scores_by_step
        if scores.change(before, scores_by_step[s], "target")[0] >= gained
    ]
    step = min(equal, default=run.final.step)
    row["SFT as far as GRPO: step"] = [step]
    row["SFT as far as GRPO: target"] = scores.change(before, scores_by_step[step], "target")
    row["SFT as far as GRPO: general"] = scores.change(before, scores_by_step[step], "general")
    return row


class _Scores:
    """Scores on the last items of each objective, which the demo's training never saw."""

    def __init__(self, recipe: Recipe, num_items: int) -> None:
        self._recipe = recipe
        self._num_items = num_items
        self._placements: dict[Path, Placement] = {}

    def at(self, run: Run, point: Point) -> dict[str, Any]:
        placement = self._placements.setdefault(run.path, Placement(run, device="cpu"))
        placement.place(point)
        batch_size = self._recipe.search.batch_size
        model = TorchModel(placement.model, placement.tokenizer, batch_size)
        self._objectives = build_objectives(self._recipe, placement.tokenizer)
        return {o.info.name: np.array(o.measure(model, self._items(o))) for o in self._objectives}

    def _items(self, objective: Any) -> tuple[str, ...]:
        ids: tuple[str, ...] = objective.item_ids[-self._num_items :]
        return ids

    def change(self, before: Any, after: Any, role: str) -> list[float]:
        """Points gained in a role: estimate, low, high."""
        members = [o for o in self._objectives if o.info.role == role]
        samples, estimate = 0.0, 0.0
        for objective in members:
            name = objective.info.name
            pair = np.array([before[name], after[name]])
            means: Any = resample_means(pair, self._items(objective), seed=0, name=name)
            samples = samples + 100 * (means[:, 1] - means[:, 0]) / len(members)
            estimate += 100 * float(pair[1].mean() - pair[0].mean()) / len(members)
        change = interval(estimate, np.asarray(samples))
        return [change.estimate, change.low, change.high]


def _mean(values: list[float]) -> list[float]:
    """Mean and its 95% interval by the spread of the steps."""
    array = np.array(values)
    error = 1.96 * float(array.std(ddof=1)) / np.sqrt(len(array))
    return [float(array.mean()), float(array.mean() - error), float(array.mean() + error)]


if __name__ == "__main__":
    main()
