"""Keep a trajectory while any transformers Trainer trains.

    trainer = SFTTrainer(..., callbacks=[TrajectoryCallback("runs/mine", every_steps=10)])

Promised: training is held for a copy of what is trained and no longer, unless checkpoints come
faster than the disk takes them. A step is on the trajectory before the Trainer saves its own state
of that step, so a run resumed from any Trainer checkpoint misses none. A run's directory appears
whole or not at all. A write that fails stops the training with an error and leaves every earlier
checkpoint as it was. Of several processes the main one writes; weights sharded by FSDP2 or
DeepSpeed ZeRO-3 are gathered one tensor at a time, and what is frozen is not.
Not promised: weights flattened by FSDP1; those are refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from accelerate.state import AcceleratorState, DistributedType, is_initialized
from peft import PeftModel
from pydantic import ValidationError
from transformers import TrainerCallback
from typing_extensions import override

from backtrack.errors import RunError, UsageError
from backtrack.recipe import TrajectorySection
from backtrack.run.directory import MANIFEST, Run
from backtrack.train.trajectory.base_model import (
    find_base,
    main_dtype,
    plain_model,
    reference_to,
)
from backtrack.train.trajectory.initializations import require_reloadable_initialization
from backtrack.train.trajectory.live_method import active_config, initialization_of, method_of
from backtrack.train.trajectory.live_weights import gather_weights
from backtrack.train.trajectory.new_run import create_run, require_free
from backtrack.train.trajectory.saver import CheckpointSaver

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class TrajectoryCallback(TrainerCallback):
    """Keeps the trained weights of chosen optimizer steps, and of the last, in a run.

    The run is made when training begins and continued when the Trainer resumes; a step taken again
    after a resume replaces the older one.
    """

    def __init__(
        self,
        path: str | Path,
        every_steps: int | None = None,
        *,
        base: str | Path | None = None,
        **trajectory: Any,
    ) -> None:
        """Say where and how often.

        Args:
            path: The run's directory; it must not exist unless the Trainer resumes.
            every_steps: Optimizer steps between checkpoints, 10 unless another cadence is given;
                the last step is always kept.
            base: Folder or Hub name of the model before training; found by itself where the model
                was loaded from files, and written into the run where it was not.
            **trajectory: Other keys of a recipe's `trajectory`: `log_checkpoints`,
                `every_distance`, `max_checkpoints`, `max_bytes`, `storage`, `key_every`, `dtype`.

        Raises:
            UsageError: A key is unknown, or its value out of range.
        """
        if every_steps is not None:
            trajectory = {"every_steps": every_steps, **trajectory}
        self._section = _section(trajectory)
        self._path = Path(path)
        self._base = base
        self._run: Run | None = None
        self._is_given = False
        self._keeps_tokenizer = False
        self._saver: CheckpointSaver | None = None

    @classmethod
    def onto(
        cls,
        run: Run | None,
        path: Path,
        section: TrajectorySection,
        *,
        keep_tokenizer: bool = False,
    ) -> Self:
        """A callback that writes into a run made before training began.

        Args:
            run: The run; none on processes other than the main one.
            path: Its directory.
            section: Which steps, and how they are kept.
            keep_tokenizer: Put the tokenizer beside each checkpoint, since it is not the base's.
        """
        callback = cls(path)
        callback._section = section
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

    def close(self) -> None:
        """Wait for the last byte; called by itself when training ends without an error.

        Raises:
            CheckpointError: A checkpoint could not be written.
        """
        saver, self._saver = self._saver, None
        if saver is not None:
            saver.close()

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Make the run, or continue it."""
        model = live["model"]
        plain_model(model)
        if isinstance(model, PeftModel):
            require_reloadable_initialization(initialization_of(active_config(model)))
        _require_no_flat_weights()
        self.close()
        # With auto_find_batch_size the Trainer begins again by itself when memory runs out.
        if not self._is_given and (self._run is None or not args.auto_find_batch_size):
            self._run = self._open_run(model, live.get("processing_class"), args, state)
        tokenizer = live.get("processing_class") if self._keeps_tokenizer else None
        self._saver = CheckpointSaver(self._run, self._section, model, args, state, tokenizer)
        self._saver.save_if_due(state)

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Keep a step that is due, and be done with it if the Trainer saves now."""
        if self._saver is not None:
            self._saver.save_if_due(state)
            if control.should_save:
                self._saver.flush()

    @override
    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Be done with every step before the Trainer may save the one it found best."""
        if self._saver is not None:
            self._saver.flush()

    @override
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Keep the weights that `load_best_model_at_end` may replace before training ends."""
        if self._saver is not None:
            if args.load_best_model_at_end:
                self._saver.keep(state)
            if control.should_save:
                self._saver.flush()

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Keep the last step of a training that stopped early."""
        # With load_best_model_at_end the live weights are those of another step by now.
        if self._saver is not None and not args.load_best_model_at_end:
            self._saver.keep(state)
        self.close()

    def _open_run(
        self, model: Any, tokenizer: Any, args: TrainingArguments, state: TrainerState
    ) -> Run | None:
        """The run, on the main process; the others only help to gather a base."""
        weights = gather_weights(model)
        if not state.is_world_process_zero:
            return None
        if state.global_step > 0 and (self._path / MANIFEST).is_file():
            return _continued(self._path, model)
        require_free(self._path, hint="resume the Trainer with `resume_from_checkpoint=True`")
        is_untrained = state.global_step == 0
        base = (
            find_base(model, is_untrained=is_untrained, weights=weights)
            if self._base is None
            else reference_to(self._base, dtype=main_dtype(plain_model(model)))
        )
        if base is None and not is_untrained and not isinstance(model, PeftModel):
            raise UsageError(
                f"training goes on at step {state.global_step}, and the model before it is not at "
                "hand. Name it: TrajectoryCallback(..., base=FOLDER_OR_NAME)."
            )
        return create_run(
            self._path, model, base, seed=args.seed, tokenizer=tokenizer, weights=weights,
            is_untrained=is_untrained,
        )  # fmt: skip


def _continued(path: Path, model: Any) -> Run:
    run = Run.open(path)
    kind = method_of(model).kind
    if run.manifest.method.kind != kind:
        raise RunError(
            f"{path} was trained by `{run.manifest.method.kind}`, the model that resumes by "
            f"`{kind}`. Resume with the same method, or take another name."
        )
    return run


def _section(values: dict[str, Any]) -> TrajectorySection:
    try:
        return TrajectorySection.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "cadence"
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"TrajectoryCallback: {key}: {reason}, got {first['input']!r}."
        ) from error


def _require_no_flat_weights() -> None:
    # Accelerate keeps one state a process; by the time training begins a Trainer has filled it.
    if not is_initialized():
        return
    state = AcceleratorState()
    if state.distributed_type == DistributedType.FSDP and state.fsdp_plugin.fsdp_version != 2:
        raise UsageError(
            "weights flattened by FSDP1 cannot be kept step by step. Set `fsdp_version: 2` in "
            "accelerate's configuration, or let the Trainer save its own checkpoints and take "
            "them over: `backtrack adopt OUTPUT_DIR`."
        )
