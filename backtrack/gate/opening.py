"""What a side of a gate is, by its name: results, measurements, a run's point, or a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from backtrack.errors import UsageError
from backtrack.gate.lm_eval_results import is_lm_eval_folder
from backtrack.point import Point, find_point, is_point
from backtrack.run.finding import find_runs, is_run

if TYPE_CHECKING:
    from backtrack.run.directory import Run

Kind = Literal["lm_eval", "measurements", "run", "model"]
_ADAPTER = "adapter_config.json"
_MODEL = "config.json"


def split_name(text: str) -> tuple[str, str]:
    """Split `NAME@POINT` into both; the point is empty where none is named."""
    name, at, point = text.rpartition("@")
    is_named = bool(at) and is_point(":".join(point.split(":")[:2])) and not Path(text).exists()
    return (name, point) if is_named else (text, "")


def kind_of(name: str, runs: Path = Path("runs")) -> Kind:
    """What a side is.

    Args:
        name: A path, the name of a run in `runs`, or a model's name on the Hub.
        runs: Folder of the runs.

    Raises:
        UsageError: It is a path that does not exist, or a folder in which nothing is known.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix in (".jsonl", ".ndjson"):
            return "measurements"
        raise UsageError(
            f"{path} is a file and no side of a gate. A file has measurements, a line each "
            "(a run's measurements.jsonl); for lm-eval name the folder with samples_*.jsonl."
        )
    if path.is_dir():
        return _kind_of_folder(path)
    if (runs / name) in find_runs(runs):
        return "run"
    before, at, point = name.rpartition("@")
    if at and (Path(before).is_dir() or (runs / before) in find_runs(runs)):
        raise UsageError(
            f"{point!r} is no point of {before}. Write base, chosen, final, STEP:ALPHA, or an "
            "alpha of the last step."
        )
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1 or path.parent.is_dir():
        raise UsageError(f"there is no run, adapter, model or folder of results {name}.")
    return "model"


def _kind_of_folder(path: Path) -> Kind:
    if is_run(path) or (path / _ADAPTER).is_file():
        return "run"
    if is_lm_eval_folder(path):
        return "lm_eval"
    return "model" if (path / _MODEL).is_file() else "run"


def point_of(run: Run, text: str) -> Point:
    """The point of a run that `base`, `chosen`, `final`, `STEP:ALPHA` or `ALPHA` names.

    Args:
        run: The run.
        text: Empty for the chosen point, or the last checkpoint where none is chosen.

    Raises:
        UsageError: The text is no point, or nothing is chosen yet.
    """
    selection = run.selection()
    if text == "chosen" and selection is None:
        raise UsageError(f"{run.path} has no choice yet: `backtrack select` makes one.")
    chosen = run.final if selection is None else selection.chosen
    return find_point(
        text or "chosen", {"base": Point.base(), "chosen": chosen, "final": run.final}
    )
