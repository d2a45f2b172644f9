"""Find where a killed training can go on, and refuse to go on with another recipe.

The Trainer's own checkpoints hold optimizer, schedule, random state and place in the data. It
writes them in place and pickled, and reads them back itself with `torch.load(weights_only=True)`
(what FSDP and DeepSpeed keep below them, those libraries load, unpickling); nothing here
unpickles. A kill can leave one half-written, so each is looked at before it is used.
"""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from backtrack.errors import UsageError
from backtrack.records import Record
from backtrack.run.files import write_atomically
from backtrack.run.foreign_formats import find_weights, weight_files_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backtrack.recipe import Recipe
    from backtrack.run.directory import Run

TRAINER_FOLDER = "trainer"
_END = "end.json"
_KEPT = {
    "base", "method", "data", "sft", "grpo", "rewards", "learning_rates", "early_stop", "watch",
    "seed", "trajectory",
}  # fmt: skip


def newest_checkpoint(folder: Path) -> Path | None:
    """The Trainer's newest whole checkpoint in its folder, if there is one."""
    found = [path for path in folder.glob("checkpoint-*") if _step(path) > 0]
    for path in sorted(found, key=_step, reverse=True):
        if _is_whole(path):
            return path
    return None


class End(Record):
    """How a training ended.

    Attributes:
        step: The last one taken.
        reason: Why it stopped before its time; none where it took all its steps.
    """

    step: int
    reason: str | None = None


def write_end(run: Run, end: End) -> None:
    """Note that training is over, so that resuming takes no step more."""
    folder = run.path / TRAINER_FOLDER
    folder.mkdir(exist_ok=True)
    write_atomically(folder / _END, end.model_dump_json() + "\n")


def read_end(run: Run) -> End | None:
    """How a run's training ended; none where it has not, or nobody noted it."""
    path = run.path / TRAINER_FOLDER / _END
    return End.model_validate_json(path.read_bytes()) if path.is_file() else None


def is_finished(run: Run) -> bool:
    """Whether a run trained by recipe has taken all its steps, or was stopped by a rule."""
    if read_end(run) is not None:
        return True
    checkpoint = newest_checkpoint(run.path / TRAINER_FOLDER)
    if checkpoint is None:
        return False
    state = _state(checkpoint)
    return state["global_step"] >= state["max_steps"] and state["global_step"] in run.steps


def require_same_recipe(run: Run, recipe: Recipe) -> None:
    """Refuse to go on with a recipe that would have trained something else.

    Raises:
        UsageError: Names the first key that changed.
    """
    if run.recipe is None:
        raise UsageError(
            f"{run.path} was not trained from a recipe, so a recipe cannot resume it. Resume the "
            "Trainer that made it."
        )
    old, new = (
        dict(_leaves(r.model_dump(mode="json", include=_KEPT))) for r in (run.recipe, recipe)
    )
    for key in sorted(old | new):
        if old.get(key) != new.get(key):
            raise UsageError(
                f"the recipe's `{key}` is {new.get(key)!r}, but {run.path} was begun with "
                f"{old.get(key)!r}. Put it back to resume, or train under another `name`."
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


def _state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(
        (checkpoint / "trainer_state.json").read_text(encoding="utf-8")
    )
    return state


def _is_whole(checkpoint: Path) -> bool:
    pickled = [checkpoint / "scheduler.pt"]
    random_states = sorted(checkpoint.glob("rng_state*.pth"))
    weights = sorted(checkpoint.glob("*.safetensors"))
    # FSDP and DeepSpeed keep weights and optimizer as parts of the processes, below the folder.
    sharded = find_weights(checkpoint)
    if sharded is None:
        pickled.append(checkpoint / "optimizer.pt")
    elif sharded[0] == "zero":
        pickled += weight_files_of(*sharded)
    try:
        return (
            _state(checkpoint)["global_step"] == _step(checkpoint)
            and bool(random_states)
            and bool(weights or sharded)
            # A zip archive keeps its table at its end: one that was cut short is none.
            and all(zipfile.is_zipfile(path) for path in [*pickled, *random_states])
            and all(_opens(path) for path in weights)
            and _has_every_shard(checkpoint)
        )
    except (OSError, ValueError, KeyError, TypeError):
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
        for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    )
