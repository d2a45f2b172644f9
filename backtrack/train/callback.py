"""Keep a trajectory while any transformers Trainer trains.

    trainer = SFTTrainer(..., callbacks=[TrajectoryCallback("runs/mine", every_steps=10)])

Promised: a step is on the trajectory before the Trainer saves its own state of that step, so a run
resumed from any Trainer checkpoint misses none. A run's directory appears whole or not at all. A
write that fails stops the training with an error and leaves every earlier checkpoint as it was.
Of several processes the main one writes.
Not promised: weights sharded over processes (FSDP, DeepSpeed ZeRO-3); those are refused by name.
"""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from accelerate.state import (
    AcceleratorState,
    DistributedType,
)
from peft import PeftModel
from safetensors import SafetensorError
from transformers import TrainerCallback
from typing_extensions import override

from backtrack.errors import CheckpointError, RunError, UsageError
from backtrack.records import Manifest
from backtrack.run.directory import MANIFEST, Run, now, sync_folder
from backtrack.run.reader import base_folder
from backtrack.run.writer import write_checkpoint
from backtrack.train.base import (
    active_config,
    find_base,
    is_vocabulary_resized,
    main_dtype,
    method_of,
    plain_model,
    reference_to,
    require_lasting_start,
    start_of,
    write_base,
)

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from backtrack.recipe import Recipe
    from backtrack.records import BaseModelReference

_LIBRARIES = ("backtrack", "torch", "transformers", "peft", "trl", "safetensors")


class TrajectoryCallback(TrainerCallback):
    """Writes the trained weights every few optimizer steps, and the last, into a run.

    The run is made when training begins and continued when the Trainer resumes; a step taken again
    after a resume replaces the older one.
    """

    def __init__(
        self, path: str | Path, every_steps: int = 10, *, base: str | Path | None = None
    ) -> None:
        """Say where and how often.

        Args:
            path: The run's directory; it must not exist unless the Trainer resumes.
            every_steps: Optimizer steps between checkpoints; the last step is always kept.
            base: Folder or Hub name of the model before training; found by itself where the model
                was loaded from files, and written into the run where it was not.
        """
        if every_steps < 1:
            raise UsageError(f"every_steps must be 1 or more, not {every_steps}.")
        self._path = Path(path)
        self._every_steps = every_steps
        self._base = base
        self._run: Run | None = None
        self._is_given = False
        self._last_step = 0
        self._is_resized = False
        self._keeps_tokenizer = False

    @classmethod
    def onto(cls, run: Run, every_steps: int, *, keep_tokenizer: bool = False) -> Self:
        """A callback that writes into a run made before training began.

        Args:
            run: The run.
            every_steps: Optimizer steps between checkpoints.
            keep_tokenizer: Put the tokenizer beside each checkpoint, since it is not the base's.
        """
        callback = cls(run.path, every_steps)
        callback._run, callback._is_given = run, True
        callback._keeps_tokenizer = keep_tokenizer
        return callback

    @property
    def run(self) -> Run:
        """The run.

        Raises:
            RunError: Training has not begun, or this is not the main process.
        """
        if self._run is None:
            raise RunError(f"there is no run in {self._path} yet: training has not begun.")
        return self._run

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Make the run, or continue it."""
        if not state.is_world_process_zero:
            return
        model = live["model"]
        plain_model(model)
        if isinstance(model, PeftModel):
            require_lasting_start(start_of(active_config(model)))
        _require_whole_weights()
        # With auto_find_batch_size the Trainer begins again by itself when memory runs out.
        if self._run is None or not (self._is_given or args.auto_find_batch_size):
            self._run = self._open_run(model, live.get("processing_class"), args, state)
        if isinstance(model, PeftModel):
            self._is_resized = is_vocabulary_resized(model, base_folder(self._run.base))
        step = state.global_step
        self._last_step = step if step in self._run.steps else 0
        if self._is_due(state):
            self._write(state, live)

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Write every so many steps, and the last one known in advance."""
        if self._is_due(state):
            self._write(state, live)

    @override
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Write the weights that `load_best_model_at_end` may replace before training ends."""
        if args.load_best_model_at_end:
            self._write(state, live)

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Write the last step of a training that stopped early."""
        # With load_best_model_at_end the live weights are those of another step by now.
        if not args.load_best_model_at_end:
            self._write(state, live)

    def _is_due(self, state: TrainerState) -> bool:
        return state.global_step % self._every_steps == 0 or state.global_step >= state.max_steps

    def _open_run(
        self, model: Any, tokenizer: Any, args: TrainingArguments, state: TrainerState
    ) -> Run:
        if state.global_step > 0 and (self._path / MANIFEST).is_file():
            return _continued(self._path, model)
        require_free(self._path, hint="resume the Trainer with `resume_from_checkpoint=True`")
        is_untouched = state.global_step == 0
        base = (
            find_base(model, is_untouched=is_untouched)
            if self._base is None
            else reference_to(self._base, dtype=main_dtype(plain_model(model)))
        )
        if base is None and not is_untouched and not isinstance(model, PeftModel):
            raise UsageError(
                f"training goes on at step {state.global_step}, and the model before it is not at "
                "hand. Name it: TrajectoryCallback(..., base=FOLDER_OR_NAME)."
            )
        return create_run(self._path, model, base, seed=args.seed, tokenizer=tokenizer)

    def _write(self, state: TrainerState, live: dict[str, Any]) -> None:
        step = state.global_step
        # Resumed when it has finished, the Trainer takes one step more than it was asked for.
        if self._run is None or step in {0, self._last_step} or step > state.max_steps:
            return
        losses = (line["loss"] for line in reversed(state.log_history) if "loss" in line)
        try:
            write_checkpoint(
                self._run,
                step,
                lambda folder: self._save(live, folder),
                train_loss=next(losses, None),
            )
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"step {step} could not be written into {self._run.trajectory}: {error}. "
                f"{len(self._run.steps)} checkpoints before it are whole. Make room, then resume."
            ) from error
        self._last_step = step

    def _save(self, live: dict[str, Any], folder: Path) -> None:
        save_weights(live["model"], folder, is_resized=self._is_resized)
        if self._keeps_tokenizer:
            live["processing_class"].save_pretrained(folder)


def create_run(  # noqa: PLR0913  # one run has that many facts
    path: Path,
    model: Any,
    base: BaseModelReference | None,
    *,
    seed: int | None,
    tokenizer: Any = None,
    recipe: Recipe | None = None,
    recipe_text: str | None = None,
) -> Run:
    """Make a run's directory in one stroke: whatever happens, it is there whole or not at all.

    Args:
        path: Where; it must not exist, or be empty.
        model: The live model, before training.
        base: Its base; where none is given the live weights are written into the run.
        seed: Of training.
        tokenizer: Kept beside a base that is written.
        recipe: What made the run, if a recipe did.
        recipe_text: The recipe in the user's words.
    """
    staging = path.with_name(f".{path.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        if base is None:
            write_base(model, tokenizer, staging / "base")
            base = reference_to(staging / "base").model_copy(
                update={"model": str(path.resolve() / "base")}
            )
        manifest = Manifest(
            name=path.name,
            base=base,
            method=method_of(model),
            seed=seed,
            versions=_versions(),
            created=now(),
        )
        run = Run.create(staging / "run", manifest, recipe, recipe_text)
        if (staging / "base").is_dir():
            (staging / "base").rename(run.path / "base")
        run.path.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Run.open(path)


def require_free(path: Path, *, hint: str) -> None:
    """Refuse a directory that is taken.

    Raises:
        RunError: It holds a run, or other files.
    """
    if (path / MANIFEST).exists():
        raise RunError(f"{path} holds a run already. Take another name, or {hint}.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} is taken by other files and holds no run. Take another name.")


def save_weights(model: Any, folder: Path, *, is_resized: bool = False) -> None:
    """Write what is trained, an adapter or a whole model, for stock PEFT or transformers."""
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder)
        return
    name = model.active_adapters[0]
    # Left on "auto", PEFT asks the Hub for the base's vocabulary at every save.
    model.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=is_resized)
    (folder / "README.md").unlink(missing_ok=True)
    if name != "default":
        for file in (folder / name).iterdir():
            file.rename(folder / file.name)
        (folder / name).rmdir()


def _continued(path: Path, model: Any) -> Run:
    run = Run.open(path)
    kind = method_of(model).kind
    if run.manifest.method.kind != kind:
        raise RunError(
            f"{path} was trained by `{run.manifest.method.kind}`, the model that resumes by "
            f"`{kind}`. Resume with the same method, or take another name."
        )
    return run


def _require_whole_weights() -> None:
    # Accelerate keeps one state a process; by the time training begins the Trainer has filled it.
    state = AcceleratorState()
    is_sharded = state.distributed_type == DistributedType.FSDP or (
        state.distributed_type == DistributedType.DEEPSPEED
        and state.deepspeed_plugin.zero_stage == 3
    )
    if is_sharded:
        raise UsageError(
            "weights sharded by FSDP or DeepSpeed ZeRO-3 cannot be kept step by step. Let the "
            "Trainer save its own checkpoints and take them over: `backtrack adopt OUTPUT_DIR`."
        )


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
