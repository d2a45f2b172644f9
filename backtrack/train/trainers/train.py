"""Train a recipe by one of TRL's trainers, saving a trajectory.

Promised: a run killed at any moment can be resumed, and on one CPU thread what it then writes
equals, bit for bit, what an uninterrupted run writes. The run's folder is created once model and
data are loaded, so a recipe that fails before that leaves nothing behind.
Not promised: that a GPU repeats its sums in the same order.
The Trainer's own state (see `backtrack.train.trainers.resume`) is in the run's `trainer/`.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging
from typing_extensions import override

from backtrack.errors import RunError
from backtrack.run.adoption.notes import training_notes
from backtrack.run.checkpoint_reader import verify_base
from backtrack.run.directory import MANIFEST, Run
from backtrack.train.trainers.build import build_trainer
from backtrack.train.trainers.probes import ProbeCallback
from backtrack.train.trainers.resume import (
    TRAINER_FOLDER,
    End,
    is_finished,
    newest_checkpoint,
    require_same_recipe,
    write_end,
)
from backtrack.train.trainers.trajectory_log import TrajectoryLogCallback
from backtrack.train.trajectory.base_model import reference_to
from backtrack.train.trajectory.callback import ExistingRunCallback
from backtrack.train.trajectory.new_run import create_run, require_free

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import TrainerControl, TrainerState, TrainingArguments

    from backtrack.recipe import BaseSection, Recipe
    from backtrack.records import BaseModelReference
    from backtrack.train.trainers.probes import ProbeEvaluation

# On a full disk `torch.save` raises a plain RuntimeError without an errno.
_FULL_DISK_MESSAGES = ("inline_container", "PytorchStreamWriter", "iostream error")


@dataclass(frozen=True)
class TrainingProgress:
    """How far training has come.

    Attributes:
        done: Optimizer steps taken, including those before a resume.
        total: Optimizer steps of the training.
        loss: The loss logged last; None before the first.
        seconds: Wall time since this process began to train.
        reward: Mean reward logged last, under GRPO; None otherwise.
        probe: The last probe evaluation; None if the recipe has no `watch`.
    """

    done: int
    total: int
    loss: float | None
    seconds: float
    reward: float | None = None
    probe: ProbeEvaluation | None = None


def train(
    recipe: Recipe,
    *,
    recipe_text: str | None = None,
    resume: bool = False,
    on_progress: Callable[[TrainingProgress], None] | None = None,
) -> Run:
    """Train a recipe into the run `output`/`name`.

    Args:
        recipe: The recipe.
        recipe_text: The recipe as the user wrote it, saved in the run.
        resume: Continue a training that was killed. A finished run (see
            `backtrack.train.trainers.resume.is_finished`) is returned as it is; a run that does
            not exist is started.
        on_progress: Called when training begins and at each log, by default every step.

    Raises:
        UsageError: The recipe cannot be trained, or is not the one the run was started with.
        RunError: The run's folder is occupied, or the base is missing.
        CheckpointError: A checkpoint could not be written.
    """
    path = Path(recipe.output) / recipe.name
    run = _started_run(path, recipe) if resume else None
    if run is None:
        require_free(path, hint="continue with --resume")
    elif is_finished(run):
        return run
    with _no_progress_bars():
        trainer = build_trainer(recipe, path.parent)
        probes = _add_callbacks(trainer, recipe, path, on_progress)
        # All processes check whether the run exists before the main one creates it.
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            base = _reference(recipe.base) if run is None else _verified(run.base)
            run = run or create_run(
                path, trainer.model, base, tokenizer=_changed_tokenizer(trainer, recipe),
                seed=recipe.seed, recipe=recipe, recipe_text=recipe_text,
            )  # fmt: skip
        callback = ExistingRunCallback(
            run if trainer.is_world_process_zero() else None, recipe.trajectory
        )
        trainer.add_callback(callback)
        trainer.add_callback(TrajectoryLogCallback(trainer, run))
        try:
            _run_training(trainer, path / TRAINER_FOLDER, recipe.paradigm)
        finally:
            callback.close()
        if trainer.is_world_process_zero() and run is not None:
            write_end(run, _end(trainer, probes))
            finished = Run.open(path)
            finished.keep_notes(training_notes(finished))
    trainer.accelerator.wait_for_everyone()
    return Run.open(path)


def _add_callbacks(
    trainer: Any,
    recipe: Recipe,
    path: Path,
    on_progress: Callable[[TrainingProgress], None] | None,
) -> ProbeCallback | None:
    """Add the callbacks for probe evaluations, which may stop training, and for progress."""
    reporter = None if on_progress is None else _Reporter(on_progress)
    probes = None
    if recipe.watch is not None:
        on_evaluation = None if reporter is None else reporter.on_probe_evaluation
        probes = ProbeCallback(recipe, trainer, path, on_evaluation)
        trainer.add_callback(probes)
    if reporter is not None:
        trainer.add_callback(reporter)
    return probes


def _end(trainer: Any, probes: ProbeCallback | None) -> End:
    state = trainer.state
    reason = None if probes is None else probes.stop_reason
    if reason is None and state.global_step < state.max_steps:
        reason = f"{trainer.args.metric_for_best_model} stopped improving"
    return End(step=state.global_step, reason=reason)


def _started_run(path: Path, recipe: Recipe) -> Run | None:
    if not (path / MANIFEST).is_file():
        return None
    run = Run.open(path)
    require_same_recipe(run, recipe)
    return run


def _changed_tokenizer(trainer: Any, recipe: Recipe) -> Any:
    """The trainer's tokenizer if the recipe changes the base's, else None."""
    is_changed = not {"chat_template_path", "eos_token"}.isdisjoint(recipe.sft)
    return trainer.processing_class if is_changed else None


def _reference(base: BaseSection) -> BaseModelReference:
    return reference_to(base.model, **base.model_dump(exclude={"model"}))


def _verified(base: BaseModelReference) -> BaseModelReference:
    verify_base(base)
    return base


def _run_training(trainer: Any, folder: Path, section: str) -> None:
    # SFTTrainer creates its folder when constructed, so this one is set once the run exists.
    trainer.args.output_dir = str(folder)
    checkpoint = newest_checkpoint(folder)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"the GPU's memory is full. Lower `{section}.per_device_train_batch_size` and raise "
            f"`{section}.gradient_accumulation_steps`, or lower `{section}."
            f"{'max_completion_length' if section == 'grpo' else 'max_length'}`."
        ) from error
    except KeyError as error:
        if "metric_for_best_model" not in str(error):
            raise
        logged = dict.fromkeys(name for entry in trainer.state.log_history for name in entry)
        known = ", ".join(name for name in logged if name.startswith("eval_"))
        raise RunError(
            f"early_stop.metric: there is no {trainer.args.metric_for_best_model!r} among the "
            f"logged metrics. There are: {known}. Set one of them and train under another name."
        ) from error
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and not any(
            s in str(error) for s in _FULL_DISK_MESSAGES
        ):
            raise
        raise RunError(
            f"the Trainer could not write its state into {folder}: {error}. Free disk space, then "
            "continue with --resume; the trajectory is complete up to here."
        ) from error


class _Reporter(TrainerCallback):
    def __init__(self, on_progress: Callable[[TrainingProgress], None]) -> None:
        self._on_progress = on_progress
        self._started = time.monotonic()
        self._probe: ProbeEvaluation | None = None

    def on_probe_evaluation(self, probe: ProbeEvaluation) -> None:
        """Store the evaluation for the next report."""
        self._probe = probe

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        self._started = time.monotonic()
        self._report(state)

    @override
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        self._report(state)

    def _report(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            self._on_progress(
                TrainingProgress(
                    done=state.global_step,
                    total=state.max_steps,
                    loss=_last_logged(state, "loss"),
                    seconds=time.monotonic() - self._started,
                    reward=_last_logged(state, "reward"),
                    probe=self._probe,
                )
            )


def _last_logged(state: TrainerState, key: str) -> float | None:
    return next((line[key] for line in reversed(state.log_history) if key in line), None)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Turn the libraries' progress bars off, and restore them afterwards."""
    had_bars = transformers_logging.is_progress_bar_enabled()
    had_data_bars = datasets.are_progress_bars_disabled() is False
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if had_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        if had_data_bars:
            datasets.enable_progress_bars()
