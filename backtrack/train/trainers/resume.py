"""Find the Trainer checkpoint a killed training resumes from, and refuse a changed recipe.

The Trainer's own checkpoints contain optimizer, schedule, random states and position in the data.
It writes them in place and pickled, and reads them back itself with
`torch.load(weights_only=True)`; what FSDP and DeepSpeed write below them, those libraries load,
unpickling. Nothing here unpickles. A kill can leave a checkpoint half-written, so each is checked
before it is used.
"""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from backtrack.errors import RunError, UsageError
from backtrack.recipe import PARADIGMS
from backtrack.records import Record
from backtrack.run.files import read_record, write_atomically
from backtrack.run.foreign.formats import find_weights, weight_files_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backtrack.recipe import Recipe
    from backtrack.run.directory import Run

TRAINER_FOLDER = "trainer"
_END = "end.json"
_UNCHANGEABLE = {
    "base", "method", "data", *PARADIGMS, "rewards", "learning_rates", "early_stop", "watch",
    "seed", "trajectory",
}  # fmt: skip
"""Sections of a recipe that must not change between a kill and a resume."""


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the Trainer's newest complete checkpoint in its folder; None if there is none."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if _step(path) > 0]
    for path in sorted(checkpoints, key=_step, reverse=True):
        if _is_complete(path):
            return path
    return None


class End(Record):
    """How a training ended.

    Attributes:
        step: The last optimizer step.
        reason: Why it stopped early; None if it took all its steps.
    """

    step: int
    reason: str | None = None


def write_end(run: Run, end: End) -> None:
    """Record that training has ended, so that resuming trains no further."""
    folder = run.path / TRAINER_FOLDER
    folder.mkdir(exist_ok=True)
    write_atomically(folder / _END, end.model_dump_json() + "\n")


def read_end(run: Run) -> End | None:
    """Return how a run's training ended; None if it has not, or it was not recorded."""
    path = run.path / TRAINER_FOLDER / _END
    remedy = "Restore it from a copy, or delete it and resume training."
    return read_record(path, End, remedy) if path.is_file() else None


def is_finished(run: Run) -> bool:
    """Whether a run trained from a recipe has taken all its steps or was stopped early."""
    if read_end(run) is not None:
        return True
    checkpoint = newest_checkpoint(run.path / TRAINER_FOLDER)
    if checkpoint is None:
        return False
    state = _state(checkpoint)
    return state.global_step >= state.max_steps and state.global_step in run.steps


def require_same_recipe(run: Run, recipe: Recipe) -> None:
    """Refuse to resume with a recipe that would train something else.

    Raises:
        UsageError: Names the first key that changed.
    """
    if run.recipe is None:
        raise UsageError(
            f"{run.path} was not trained from a recipe, so a recipe cannot resume it. Resume it "
            "by the script that trained it."
        )
    old, new = (
        dict(_leaves(r.model_dump(mode="json", include=_UNCHANGEABLE)))
        for r in (run.recipe, recipe)
    )
    for key in sorted(old | new):
        if old.get(key) != new.get(key):
            raise UsageError(
                f"the recipe's `{key}` is {new.get(key)!r}, but {run.path} was started with "
                f"{old.get(key)!r}. Restore it to resume, or train under another `name`."
            )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdecimal() else 0


class _TrainerState(BaseModel):
    """The fields read of a Trainer's `trainer_state.json`."""

    global_step: int
    max_steps: int


class _ShardIndex(BaseModel):
    """The field read of an index of sharded weights."""

    weight_map: dict[str, str]


def _state(checkpoint: Path) -> _TrainerState:
    return read_record(checkpoint / "trainer_state.json", _TrainerState)


def _is_complete(checkpoint: Path) -> bool:
    pickled = [checkpoint / "scheduler.pt"]
    random_states = sorted(checkpoint.glob("rng_state*.pth"))
    weights = sorted(checkpoint.glob("*.safetensors"))
    # FSDP and DeepSpeed write shards of weights and optimizer into a folder of their own.
    sharded = find_weights(checkpoint)
    if sharded is None:
        pickled.append(checkpoint / "optimizer.pt")
    elif sharded[0] == "zero":
        pickled += weight_files_of(*sharded)
    try:
        return (
            _state(checkpoint).global_step == _step(checkpoint)
            and bool(random_states)
            and bool(weights or sharded)
            # A zip archive ends with its table, so a truncated file is not one.
            and all(zipfile.is_zipfile(path) for path in [*pickled, *random_states])
            and all(_opens(path) for path in weights)
            and _has_every_shard(checkpoint)
        )
    except (OSError, ValueError, RunError):
        return False


def _opens(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _has_every_shard(checkpoint: Path) -> bool:
    return all(
        (checkpoint / shard).is_file()
        for index in checkpoint.glob("*.safetensors.index.json")
        for shard in read_record(index, _ShardIndex).weight_map.values()
    )
