"""Wall time of measuring a point, relative to bare generation on the same items.

    python tests/bench/overhead.py

The demo's run at one point, 200 selection items of the target by greedy generation and 200 of the
general role. With racing, items are measured rung by rung, each in its own batches; the bare time
is that of one call over all items, with prompts already encoded and nothing scored, placed or
recorded. Medians of several alternating rounds in one process.
"""

from __future__ import annotations

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

ROUNDS = 7


def bare(engine: Any, objectives: Sequence[Any], prompts: dict[str, list[list[int]]]) -> float:
    """Seconds of generation over all selection items, objective after objective."""
    model = engine.language_model
    begin = time.perf_counter()
    for objective in objectives:
        section: Any = objective._section
        limits = CompletionLimits(section.max_new_tokens, section.stop)
        model.complete(prompts[objective.info.name], limits)
    return time.perf_counter() - begin


def whole(evaluator: Evaluator, point: Point) -> float:
    """Seconds of a point as the search measures it: placed, rung by rung, recorded."""
    evaluator._recorded.clear()
    evaluator._indices.clear()
    begin = time.perf_counter()
    for rung in range(len(evaluator.rungs("selection"))):
        asked = [Evaluation(point, rung, "bench")]
        evaluator.measure(asked, "selection", Meter(0, None))
    return time.perf_counter() - begin


def main() -> None:
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
            times = []
            for i in range(ROUNDS):
                measured = whole(evaluator, Point(step=run.steps[-1], alpha=0.3 + 0.05 * (i % 2)))
                times.append((measured, bare(engine, objectives, prompts)))
            ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
            num_items = sum(len(ids) for ids in chosen.values())
            print(
                f"{name}: a point of {num_items} items {ours:.2f} s, bare {theirs:.2f} s, "
                f"ratio {ours / theirs:.2f} (bound 1.2)"
            )


if __name__ == "__main__":
    main()
