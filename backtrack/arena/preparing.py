"""Prepare one entrant: train or adopt, measure, diagnose; each step resumes.

It runs in a slot (see `slots`): in this process, or in one of another machine that sees the
arena's folder. It writes the entrant's own run and nothing else.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backtrack.arena.geometry import geometry_of
from backtrack.arena.launching import num_processes, train_by_processes
from backtrack.errors import BacktrackError
from backtrack.recipe import ClusterSection
from backtrack.run.adopt import adopt
from backtrack.run.directory import MANIFEST, Run
from backtrack.run.finding import is_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from backtrack.recipe.arena import DiagnoseSection, EntrantSpec

    OnStep = Callable[[str], None]

COMMAND = "backtrack arena"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of an entrant in its slot.

    Attributes:
        failure: Why it failed; None if it did not.
        death: How its process ended, if that died; what it had recorded stays, and another may go
            on. None if it did not die.
        train_seconds: Wall time of training; None if it was not trained now.
        measure_seconds: Wall time of measuring; None if it was not measured now.
    """

    failure: str | None = None
    death: str | None = None
    train_seconds: float | None = None
    measure_seconds: float | None = None


def folder_of(spec: EntrantSpec) -> Path:
    """Directory of an entrant's run."""
    return Path(spec.recipe.output) / spec.label


def prepare(spec: EntrantSpec, diagnosis: DiagnoseSection | None, on_step: OnStep) -> Outcome:
    """Train or adopt the run, measure and diagnose it, as far as that is not done.

    Args:
        spec: The entrant.
        diagnosis: How its final checkpoint is diagnosed; None if it is not.
        on_step: Told what is done next; first of all that it is begun.
    """
    on_step("starting")
    try:
        return _prepare(spec, diagnosis, on_step)
    except BacktrackError as error:
        return Outcome(failure=str(error))
    except Exception as error:  # one entrant's failure must not stop the others
        logger.warning("%s failed", spec.label, exc_info=error)
        text = " ".join(str(error).split())
        return Outcome(failure=f"{type(error).__name__}: {text[:500]}")


def _prepare(spec: EntrantSpec, diagnosis: DiagnoseSection | None, on_step: OnStep) -> Outcome:
    begin = time.perf_counter()
    is_to_train = _trains(spec) and not _is_trained(spec)
    run = _train(spec, on_step) if _trains(spec) else _adopt(spec, on_step)
    trained = time.perf_counter()
    is_to_measure = not (run.path / "selection.json").is_file()
    _measure(run, spec, on_step)
    measured = time.perf_counter()
    # The geometry of another entrant's checkpoints counts once, with that entrant.
    if diagnosis is not None and spec.like is None:
        _diagnose(run, diagnosis.num_prompts, on_step)
    return Outcome(
        train_seconds=trained - begin if is_to_train else None,
        measure_seconds=measured - trained if is_to_measure else None,
    )


def _trains(spec: EntrantSpec) -> bool:
    """Whether the checkpoints are its own, rather than adopted or another entrant's."""
    return spec.run is None and spec.like is None


def _is_trained(spec: EntrantSpec) -> bool:
    from backtrack.train.trainers.resume import is_finished

    folder = folder_of(spec)
    return (folder / MANIFEST).is_file() and is_finished(Run.open(folder))


def _train(spec: EntrantSpec, on_step: OnStep) -> Run:
    """The run, trained if it is not yet; by several processes if it is to have several GPUs."""
    from backtrack.train.trainers.train import train

    on_step("training")
    number = num_processes(spec.recipe.cluster)
    if number > 1 and not _is_trained(spec):
        return train_by_processes(spec.recipe, number)
    return train(
        spec.recipe, resume=True,
        on_progress=lambda p: on_step(f"training, step {p.done} of {p.total}"),
    )  # fmt: skip


def _adopt(spec: EntrantSpec, on_step: OnStep) -> Run:
    """The run, adopted if it is not yet."""
    folder = folder_of(spec)
    if is_run(folder):
        return Run.open(folder)
    on_step("adopting")
    source = Path(spec.run or folder.parent / str(spec.like))
    if is_run(source):
        # `adopt` reads a folder of checkpoints, which a run of ours has inside.
        source = source / "trajectory"
    return adopt(
        source,
        base=spec.recipe.base.model,
        name=spec.label,
        runs=folder.parent,
        recipe=spec.recipe,
    )


def _measure(run: Run, spec: EntrantSpec, on_step: OnStep) -> None:
    from backtrack.selection.choice.select import select

    on_step("measuring")
    select(
        run,
        recipe=spec.recipe,
        # Its actors are the arena's slots, and this is in one of them.
        cluster=ClusterSection(),
        on_progress=lambda p: on_step(f"measuring, {p.done} of {p.total} items"),
        command=COMMAND,
    )


def _diagnose(run: Run, num_prompts: int, on_step: OnStep) -> None:
    from backtrack.diagnose.diagnose import diagnose
    from backtrack.diagnose.diagnoser import Options

    if geometry_of(run):
        return
    on_step("diagnosing")
    options = Options(num_prompts=num_prompts, has_path=False)
    diagnose(run, [run.final], options, command=COMMAND)
