"""Diagnose a run: where its update acts at some points, and how that correlates with forgetting.

Promised: lines of `diagnosis.jsonl` are written module by module as they are computed, and a
second diagnosis of the same points, prompts and modules reuses them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from backtrack.diagnose.actors import lines_by_actors
from backtrack.diagnose.diagnoser import Diagnoser, Options
from backtrack.path.placement import place_as_asked
from backtrack.run.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backtrack.path.placement import Placement
    from backtrack.point import Point
    from backtrack.records.diagnosis import Diagnosis, ModuleGeometry
    from backtrack.run.directory import Run

    OnProgress = Callable[[int, int, str], None]

SUMMARY = "diagnosis.json"


@dataclass(frozen=True)
class DiagnosisResult:
    """A diagnosis and its lines, by point and then in the model's order of modules."""

    diagnosis: Diagnosis
    lines: tuple[ModuleGeometry, ...]


def diagnose(
    run: Run,
    points: Sequence[Point] = (),
    options: Options | None = None,
    *,
    placement: Placement | None = None,
    on_progress: OnProgress | None = None,
    command: str = "",
) -> DiagnosisResult:
    """Diagnose points of a run's path; write `diagnosis.jsonl` and `diagnosis.json`.

    Args:
        run: A run with at least one checkpoint.
        points: Points with all metrics; by default the final checkpoint and the chosen point.
        options: What is diagnosed, and how.
        placement: The run's live model; loaded if not given.
        on_progress: Called with the number of modules done, their number, and the last one's name.
        command: The user's command line, for the record.

    Raises:
        UsageError: A module or location does not exist, or a role has no prompts.
        PointError: The run has no such point.
        ObjectiveError: An objective's documents cannot be read.
        EngineError: The cluster does not answer, or actors died again and again.
    """
    begin = time.perf_counter()
    options = options or Options()
    diagnoser = Diagnoser(run, placement or place_as_asked(run), points, options)
    compute = diagnoser.computed
    if not options.cluster.is_one_process:
        compute = partial(lines_by_actors, run, points, options)
    lines = diagnoser.lines(compute, on_progress or (lambda _done, _total, _what: None))
    diagnosis = diagnoser.summary(lines, time.perf_counter() - begin, command)
    write_atomically(run.path / SUMMARY, diagnosis.model_dump_json(indent=2) + "\n")
    return DiagnosisResult(diagnosis, lines)
