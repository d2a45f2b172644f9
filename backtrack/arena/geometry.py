"""What a diagnosis recorded of a run's final checkpoint, and the sizes of its models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from backtrack.records.diagnosis import Diagnosis, ModuleGeometry, mean_metrics
from backtrack.run.checkpoint_reader import base_folder, shapes
from backtrack.run.checkpoint_writer import is_adapter
from backtrack.run.files import read_lines, read_record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backtrack.run.directory import Run

NOT_TRAINED = ("vera_A", "vera_B", "pvera_A", "pvera_B", "randlora_A", "randlora_B", "ranknum")
"""Parts of names of adapter tensors that are saved but never trained."""


def geometry_of(run: Run) -> dict[str, float]:
    """Metrics of the final checkpoint, means over modules; empty if it was not diagnosed."""
    from backtrack.diagnose.diagnose import SUMMARY
    from backtrack.diagnose.diagnoser import LINES

    if not (run.path / SUMMARY).is_file():
        return {}
    setting = read_record(run.path / SUMMARY, Diagnosis).setting
    latest = {
        line.module: line
        for line in read_lines(run.path / LINES, ModuleGeometry)
        if line.setting == setting and line.point == run.final and line.spectrum is not None
    }
    return mean_metrics(latest.values())


def num_parameters(run: Run) -> int:
    """Number of parameters of the base; tied ones count once."""
    return _count(shapes(base_folder(run.base)))


def num_trainable(run: Run) -> int:
    """Number of parameters that training moved: an adapter's, or all of a whole model."""
    folder = run.folder(run.final.step)
    if not is_adapter(folder):
        return num_parameters(run)
    saved = shapes(folder)
    return _count({n: s for n, s in saved.items() if not set(n.split(".")) & set(NOT_TRAINED)})


def _count(tensors: Mapping[str, Any]) -> int:
    return sum(math.prod(shape) for shape in tensors.values())
