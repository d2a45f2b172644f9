"""Time of measuring points, relative to bare generation on the same items.

    python -m tests.bench.overhead [--rounds 5]

The demo's run, all its selection items by greedy generation, one point by itself and the four
points of a round of the search, which a LoRA decodes together. With racing, items are measured
rung by rung, each in its own batches. The bare time is that of one call a point over all items of
an objective, with prompts already encoded and nothing scored, placed or recorded. Medians of
several alternating rounds in one process, in its own seconds on the processor, which other users
of the machine move less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from backtrack.demo import demo_recipe
from backtrack.evaluate.build import build_objectives
from backtrack.evaluate.encoding import encode
from backtrack.evaluate.language_model import CompletionLimits
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.records.search import Evaluation
from backtrack.selection.measure.evaluator import Evaluator
from backtrack.selection.measure.progress import Meter
from backtrack.selection.measurers.engines import start_engine
from backtrack.train.trainers.train import train

if TYPE_CHECKING:
    from collections.abc import Sequence

BOUND = 1.1


def bare(engine: Any, objectives: Sequence[Any], prompts: dict[str, list[list[int]]]) -> float:
    """Seconds of generation over all selection items, objective after objective."""
    model = engine.asked(engine.placed.model)  # it keeps no answers
    model.reads_trees  # noqa: B018  # the trial is once a run
    begin = time.process_time()
    for objective in objectives:
        section: Any = objective._section
        limits = CompletionLimits(section.max_new_tokens, section.stop)
        model.complete(prompts[objective.info.name], limits)
    return time.process_time() - begin


def whole(evaluator: Evaluator, points: Sequence[Point]) -> float:
    """Seconds of points as the search measures them: placed, rung by rung, recorded."""
    evaluator._recorded.clear()
    evaluator._indices.clear()
    begin = time.process_time()
    for rung in range(len(evaluator.rungs("selection"))):
        asked = [Evaluation(point, rung, "bench") for point in points]
        evaluator.measure(asked, "selection", Meter(0, None))
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        recipe = demo_recipe(Path(folder), 0)
        items = recipe.search.items.model_copy(update={"selection": 200})
        racings = {"racing": recipe.search.racing.shares, "no racing": ()}
        run = train(recipe)
        placement = Placement(run)
        for name, shares in racings.items():
            racing = recipe.search.racing.model_copy(update={"shares": shares})
            section = {"items": items, "racing": racing, "batch_size": 16}
            search = recipe.search.model_copy(update=section)
            changed = recipe.model_copy(update={"search": search})
            engine: Any = start_engine(run, changed, placement)
            objectives: Any = build_objectives(changed, placement.tokenizer)
            evaluator = Evaluator(run, changed, engine, None)
            chosen = evaluator.setting("selection").item_ids
            prompts = {
                o.info.name: [
                    encode(placement.tokenizer, o._examples[o.item_ids.index(i)].prompt)
                    for i in chosen[o.info.name]
                ]
                for o in objectives
            }
            for num_points in (1, recipe.search.round_size):
                times = []
                for i in range(rounds):
                    alphas = [0.3 + 0.02 * (num_points * (i % 2) + n) for n in range(num_points)]
                    points = [Point(step=run.steps[-1], alpha=alpha) for alpha in alphas]
                    measured = whole(evaluator, points)
                    times.append((measured, num_points * bare(engine, objectives, prompts)))
                ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
                num_items = sum(len(ids) for ids in chosen.values())
                print(
                    f"{name}, points at a time: {num_points}, {num_items} items each: "
                    f"{ours:.2f} s, bare {theirs:.2f} s, ratio {ours / theirs:.2f} "
                    f"(bound {BOUND})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
