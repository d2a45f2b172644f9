"""Save a trajectory while any transformers Trainer trains.

    trainer = SFTTrainer(..., callbacks=[TrajectoryCallback("runs/mine", every_steps=10)])

Promised: a save holds training up only for a copy of the trained tensors, unless checkpoints come
faster than they can be written. A step is on disk before the Trainer saves its own state of that
step, so a run resumed from any Trainer checkpoint misses none. A run's folder appears complete or
not at all. A failed write stops training with an error and leaves every earlier checkpoint as it
was. Of several processes the main one writes; weights sharded by FSDP2 or DeepSpeed ZeRO-3 are
gathered one tensor at a time, frozen ones only if the base must be written. The other processes
wait for the main one outside of any collective that times out.
Not promised: weights flattened by FSDP1. They are refused with an error that names FSDP1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.state import AcceleratorState, DistributedType, is_initialized
from peft import PeftModel
from pydantic import ValidationError
from transformers import TrainerCallback
from typing_extensions import override

from backtrack.errors import RunError, UsageError
from backtrack.recipe import TrajectorySection
from backtrack.run.directory import MANIFEST, Run
from backtrack.train.trajectory.base_model import (
    holds_weights,
    loading_of,
    named_base,
    plain_model,
    reference_to,
)
from backtrack.train.trajectory.initializations import require_reloadable_initialization
from backtrack.train.trajectory.live_method import active_config, initialization_of, method_of
from backtrack.train.trajectory.new_run import create_run, require_free
from backtrack.train.trajectory.processes import Processes
from backtrack.train.trajectory.saver import CheckpointSaver
from backtrack.train.trajectory.snapshot import gather_weights

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from backtrack.records import BaseModelReference


class _CheckpointCallback(TrainerCallback):
    """Saves due checkpoints into a run, at the Trainer's events; abstract."""

    def __init__(self, section: TrajectorySection) -> None:
        """Set which steps are saved, and in which form."""
        self._section = section
        self._saver: CheckpointSaver | None = None
        self._processes = Processes()

    def _prepare_run(
        self, model: Any, tokenizer: Any, args: TrainingArguments, state: TrainerState
    ) -> Run | None:
        """Return the run to write into; None on processes other than the main one."""
        raise NotImplementedError

    def close(self) -> None:
        """Wait until all is on disk; called automatically when training ends without an error.

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
        """Create the run or continue it, and start the writer."""
        model, tokenizer = live["model"], live.get("processing_class")
        plain_model(model)
        if isinstance(model, PeftModel):
            require_reloadable_initialization(initialization_of(active_config(model)))
        _require_no_flat_weights()
        self.close()
        self._processes = Processes.of_training()
        run = self._prepare_run(model, tokenizer, args, state)
        self._processes.wait()
        self._saver = CheckpointSaver(run, self._section, model, args, state, self._processes)
        self._saver.save_if_due(state)

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Save the step if it is due, and finish writing if the Trainer is about to save."""
        if self._saver is not None:
            self._saver.save_if_due(state)
            if control.should_save:
                self._saver.flush()

    @override
    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Finish writing, since the Trainer may save after an evaluation."""
        if self._saver is not None:
            self._saver.flush()

    @override
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Save the weights that `load_best_model_at_end` may replace before training ends."""
        if self._saver is not None:
            if args.load_best_model_at_end:
                self._saver.save(state)
            if control.should_save:
                self._saver.flush()

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Save the last step of a training that stopped early."""
        # With load_best_model_at_end the live weights are by now those of another step.
        if self._saver is not None and not args.load_best_model_at_end:
            self._saver.save(state)
        self.close()
        self._processes.wait()


class TrajectoryCallback(_CheckpointCallback):
    """Saves the trained weights at chosen optimizer steps, and at the last, in a run.

    The run is created when training begins and continued when the Trainer resumes; a step trained
    again after a resume replaces the older one.
    """

    def __init__(
        self,
        path: str | Path,
        every_steps: int | None = None,
        *,
        base: str | Path | None = None,
        **trajectory: Any,
    ) -> None:
        """Set the run's folder and how often to save.

        Args:
            path: The run's folder; it must not exist unless the Trainer resumes.
            every_steps: Optimizer steps between checkpoints; 10 unless another cadence is given.
                The last step is always saved.
            base: Folder or Hub name of the model before training. By default it is found if the
                model was loaded from files, and written into the run if it was not.
            **trajectory: Other keys of a recipe's `trajectory`: `log_checkpoints`,
                `every_distance`, `max_checkpoints`, `max_bytes`, `storage`, `key_every`, `dtype`.

        Raises:
            UsageError: A key is unknown, or its value out of range.
        """
        if every_steps is not None:
            trajectory = {"every_steps": every_steps, **trajectory}
        super().__init__(_section(trajectory))
        self._path = Path(path)
        self._base = base
        self._run: Run | None = None

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
    def _prepare_run(
        self, model: Any, tokenizer: Any, args: TrainingArguments, state: TrainerState
    ) -> Run | None:
        # With auto_find_batch_size the Trainer restarts by itself when memory runs out.
        if self._run is None or not args.auto_find_batch_size:
            self._run = self._open_run(model, tokenizer, args, state)
        return self._run

    def _open_run(
        self, model: Any, tokenizer: Any, args: TrainingArguments, state: TrainerState
    ) -> Run | None:
        """Create or continue the run on the main process; the others help to gather weights."""
        is_main = state.is_world_process_zero
        run = self._run_to_continue(model, state) if is_main else None
        if self._processes.from_main(is_so=run is not None):
            return run
        base = self._find_base(model, state)
        is_found = self._processes.from_main(is_so=base is not None)
        weights = None if is_found else gather_weights(plain_model(model), is_main=is_main)
        if not is_main:
            return None
        return create_run(
            self._path, model, base, seed=args.seed, tokenizer=tokenizer, weights=weights,
            is_untrained=state.global_step == 0,
        )  # fmt: skip

    def _run_to_continue(self, model: Any, state: TrainerState) -> Run | None:
        if state.global_step > 0 and (self._path / MANIFEST).is_file():
            return _continued(self._path, model)
        require_free(self._path, hint="resume the Trainer with `resume_from_checkpoint=True`")
        return None

    def _find_base(self, model: Any, state: TrainerState) -> BaseModelReference | None:
        """The base's files; None if it must be written, and on processes other than the main one.

        Before the first step, the live weights of a whole model are the base's: they are compared
        with the files that the model names.
        """
        is_main, is_adapter = state.is_world_process_zero, isinstance(model, PeftModel)
        if self._base is not None:
            facts = loading_of(plain_model(model))
            return reference_to(self._base, **facts) if is_main else None
        base = named_base(model) if is_main else None
        if state.global_step > 0 and not is_adapter and is_main and base is None:
            raise UsageError(
                f"training resumes at step {state.global_step}, and the model before training is "
                "not known. Name it: TrajectoryCallback(..., base=FOLDER_OR_NAME)."
            )
        is_comparable = state.global_step == 0 and not is_adapter
        if is_comparable and self._processes.from_main(is_so=base is not None):
            return base if holds_weights(base, model) else None
        return base


class ExistingRunCallback(_CheckpointCallback):
    """Saves the trained weights at chosen steps, and at the last, in a run that exists."""

    def __init__(self, run: Run | None, section: TrajectorySection) -> None:
        """Set the run and what is saved.

        Args:
            run: The run; None on processes other than the main one.
            section: Which steps are saved, and in which form.
        """
        super().__init__(section)
        self._run = run

    @override
    def _prepare_run(
        self, model: Any, tokenizer: Any, args: TrainingArguments, state: TrainerState
    ) -> Run | None:
        return self._run


def _continued(path: Path, model: Any) -> Run:
    run = Run.open(path)
    kind = method_of(model).kind
    if run.manifest.method.kind != kind:
        raise RunError(
            f"{path} was trained by `{run.manifest.method.kind}`, but the model that resumes has "
            f"method `{kind}`. Resume with the same method, or use another name."
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
    # Accelerate has one state per process; a Trainer has set it before training begins.
    if not is_initialized():
        return
    state = AcceleratorState()
    if state.distributed_type == DistributedType.FSDP and state.fsdp_plugin.fsdp_version != 2:
        raise UsageError(
            "weights flattened by FSDP1 cannot be saved during training. Set `fsdp_version: 2` in "
            "accelerate's configuration, or let the Trainer save its own checkpoints and adopt "
            "them: `backtrack adopt OUTPUT_DIR`."
        )
