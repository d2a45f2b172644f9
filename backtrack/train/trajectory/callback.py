"""Save a trajectory while any transformers Trainer trains.

    trainer = SFTTrainer(..., callbacks=[TrajectoryCallback("runs/mine", every_steps=10)])

Promised, besides what `CheckpointSaver` does for any loop: a step is on disk before the Trainer
saves its own state of that step, so a run resumed from any Trainer checkpoint misses none. A run's
folder appears complete or not at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from typing_extensions import override

from backtrack.errors import RunError
from backtrack.train.trajectory.beginning import Beginning
from backtrack.train.trajectory.cadence import section_of
from backtrack.train.trajectory.processes import Processes
from backtrack.train.trajectory.saver import CheckpointSaver, require_savable

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from backtrack.recipe import TrajectorySection
    from backtrack.run.directory import Run


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
        require_savable(model)
        self.close()
        self._processes = Processes.of_training()
        run = self._prepare_run(model, tokenizer, args, state)
        self._processes.wait()
        mixed = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        self._saver = CheckpointSaver(
            run, self._section, model,
            begun_at=state.global_step, last_step=state.max_steps, computes_in=mixed,
            processes=self._processes,
        )  # fmt: skip
        self._saver.step(state.global_step, _last_loss(state))

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Save the step if it is due, and finish writing if the Trainer is about to save."""
        if self._saver is not None:
            self._saver.step(state.global_step, _last_loss(state))
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
                self._saver.save()
            if control.should_save:
                self._saver.flush()

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        """Save the last step of a training that stopped early."""
        # With load_best_model_at_end the live weights are by now those of another step.
        if self._saver is not None and not args.load_best_model_at_end:
            self._saver.save()
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
        super().__init__(section_of(trajectory, "TrajectoryCallback"))
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
            beginning = Beginning(
                self._path, self._base, state.global_step, self._processes, seed=args.seed,
                hint="resume the Trainer with `resume_from_checkpoint=True`",
                is_main=state.is_world_process_zero,
            )  # fmt: skip
            self._run = beginning.open_run(model, tokenizer)
        return self._run


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


def _last_loss(state: TrainerState) -> float | None:
    return next((line["loss"] for line in reversed(state.log_history) if "loss" in line), None)
