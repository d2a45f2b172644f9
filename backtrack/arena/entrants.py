"""One entrant: its run made, measured and diagnosed; each step resumes where it stopped."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtrack.records.diagnosis import Diagnosis, ModuleGeometry, mean_metrics
from backtrack.run.adopt import adopt
from backtrack.run.checkpoint_reader import base_folder, shapes
from backtrack.run.checkpoint_writer import is_adapter
from backtrack.run.directory import MANIFEST, Run
from backtrack.run.files import read_lines, read_record
from backtrack.run.finding import is_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backtrack.recipe import Recipe
    from backtrack.recipe.arena import ArenaEntrant, ArenaRecipe
    from backtrack.records.arena import Paradigm

    Say = Callable[[str], None]

NOT_TRAINED = ("vera_A", "vera_B", "pvera_A", "pvera_B", "randlora_A", "randlora_B", "ranknum")
"""Parts of names of an adapter's tensors that are saved and were never trained."""


@dataclass(frozen=True)
class Times:
    """Seconds that each step took in this process; none where it was done before."""

    training: float | None = None
    measuring: float | None = None


def paradigm_of(entrant: ArenaEntrant) -> Paradigm:
    """How an entrant comes to its checkpoints."""
    if entrant.run is not None:
        return "adopted"
    return "sft" if getattr(entrant.recipe, "grpo", None) is None else "grpo"


def run_folder(entrant: ArenaEntrant) -> Path:
    """Where an entrant's run lies, or will lie."""
    return Path(entrant.recipe.output) / entrant.label


def enter(entrant: ArenaEntrant, arena: ArenaRecipe, say: Say) -> tuple[Run, Times]:
    """Make an entrant's run, measure and diagnose it.

    Args:
        entrant: Under one seed.
        arena: That it is part of.
        say: Told what goes on.

    Raises:
        BacktrackError: A step went wrong; what was done before it stays.
    """
    begin = time.perf_counter()
    was_trained = (run_folder(entrant) / MANIFEST).is_file() and not _is_training(entrant)
    run = _run(entrant, say)
    trained = time.perf_counter()
    was_measured = (run.path / "selection.json").is_file()
    _measure(run, entrant.recipe, say)
    measured = time.perf_counter()
    # Another entrant's checkpoints have its geometry: counted once.
    if arena.diagnose is not None and entrant.like is None:
        _diagnose(run, arena.diagnose.num_prompts, say)
    return run, Times(
        None if was_trained or entrant.run or entrant.like else trained - begin,
        None if was_measured else measured - trained,
    )


def _is_training(entrant: ArenaEntrant) -> bool:
    from backtrack.train.trainers.resume import is_finished

    return not is_finished(Run.open(run_folder(entrant)))


def _run(entrant: ArenaEntrant, say: Say) -> Run:
    folder = run_folder(entrant)
    if entrant.run is None and entrant.like is None:
        from backtrack.train.trainers.train import train

        say("training")
        return train(
            entrant.recipe, resume=True,
            on_progress=lambda p: say(f"training, step {p.done} of {p.total}"),
        )  # fmt: skip
    if is_run(folder):
        return Run.open(folder)
    say("adopting")
    source = Path(entrant.run or folder.parent / str(entrant.like))
    if is_run(source):
        # A run of ours keeps its checkpoints in folders that adopting reads.
        source = source / "trajectory"
    return adopt(
        source,
        base=entrant.recipe.base.model,
        name=entrant.label,
        runs=folder.parent,
        recipe=entrant.recipe,
    )


def _measure(run: Run, recipe: Recipe, say: Say) -> None:
    from backtrack.selection.choice.select import select

    say("measuring")
    select(
        run,
        recipe=recipe,
        on_progress=lambda p: say(f"measuring, {p.done} of {p.total} items"),
        command="backtrack arena",
    )


def _diagnose(run: Run, num_prompts: int, say: Say) -> None:
    from backtrack.diagnose.diagnose import Options, diagnose

    if geometry_of(run):
        return
    say("diagnosing")
    diagnose(
        run,
        [run.final],
        Options(num_prompts=num_prompts, has_path=False),
        command="backtrack arena",
    )


def geometry_of(run: Run) -> dict[str, float]:
    """Mean metrics of the final checkpoint's modules; empty where it was not diagnosed."""
    from backtrack.diagnose.diagnose import LINES, SUMMARY

    if not (run.path / SUMMARY).is_file():
        return {}
    setting = read_record(run.path / SUMMARY, Diagnosis).setting
    lines = read_lines(run.path / LINES, ModuleGeometry)
    latest = {
        line.module: line
        for line in lines
        if line.setting == setting and line.point == run.final and line.spectrum is not None
    }
    return mean_metrics(latest.values())


def num_parameters(run: Run) -> int:
    """Parameters of the base, tied ones once."""
    return _count(shapes(base_folder(run.base)))


def num_trainable(run: Run) -> int:
    """Parameters that training moved: all of a whole model, an adapter's own otherwise."""
    folder = run.folder(run.final.step)
    if not is_adapter(folder):
        return num_parameters(run)
    found = shapes(folder)
    return _count({n: s for n, s in found.items() if not set(n.split(".")) & set(NOT_TRAINED)})


def _count(found: Mapping[str, Any]) -> int:
    return sum(math.prod(shape) for shape in found.values())
