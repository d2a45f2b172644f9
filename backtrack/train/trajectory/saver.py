"""Save the checkpoints of one training that are due: copy live weights, hand them to a writer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from backtrack.errors import UsageError
from backtrack.run.checkpoint_reader import base_folder, read_checkpoint
from backtrack.run.thinning import TrajectoryBudget
from backtrack.run.trajectory_writer import Offered, TrajectoryWriter
from backtrack.train.trajectory.base_model import is_vocabulary_resized
from backtrack.train.trajectory.cadence import ByDistance, EverySteps, LogSteps, spacing_of
from backtrack.train.trajectory.live_weights import LiveWeights
from backtrack.train.trajectory.processes import Processes
from backtrack.train.trajectory.snapshot import Snapshots

if TYPE_CHECKING:
    from transformers import TrainerState, TrainingArguments

    from backtrack.recipe import TrajectorySection
    from backtrack.run.directory import Run
    from backtrack.train.trajectory.cadence import Cadence
    from backtrack.train.trajectory.live_weights import Convert
    from backtrack.train.trajectory.snapshot import Snapshot


class CheckpointSaver:
    """Saves live weights as checkpoints, from the beginning of a training to its end.

    If weights are sharded, every process needs one, since all must take part in gathering them.
    Otherwise only the main process's does anything.
    """

    def __init__(
        self,
        run: Run | None,
        section: TrajectorySection,
        model: Any,
        args: TrainingArguments,
        state: TrainerState,
        processes: Processes | None = None,
    ) -> None:
        """Find the tensors to save and start the writer thread.

        Args:
            run: The run; None on processes other than the main one.
            section: Which steps are saved, and in which form.
            model: The live model.
            args: The Trainer's arguments.
            state: The Trainer's state, at step 0 or at the step training resumes from.
            processes: The processes of this training; None if it is the only one.

        Raises:
            UsageError: The weights are sharded, and this cadence or adapter needs them whole.
        """
        self._run = run
        self._processes = processes or Processes()
        is_adapter = isinstance(model, PeftModel)
        dtype = stored_dtype(section, args, is_adapter=is_adapter)
        is_resized = run is not None and is_adapter and _is_resized(model, run)
        self._live = LiveWeights(model, is_resized=is_resized, dtype=dtype)
        self._snapshots = Snapshots(dtype)
        step = state.global_step
        # With sharded weights all processes must decide alike, and only one knows the run.
        is_saved = run is not None and step in run.steps and not self._live.is_sharded
        self._last_saved_step = step if is_saved else 0
        self._cadence = self._make_cadence(section, state, dtype)
        self._writer: TrajectoryWriter | None = None
        if run is not None:
            self._writer = TrajectoryWriter(
                run,
                is_coded=not is_adapter and section.storage != "plain",
                budget=TrajectoryBudget(
                    section.max_bytes, section.max_checkpoints, spacing_of(section)
                ),
                key_every=section.key_every,
                begun_at=step,
            )

    def save_if_due(self, state: TrainerState) -> None:
        """Save the current step if it is due or the last of training."""
        if state.global_step == 0 or not (self._live.is_sharded or self._writer):
            return
        is_last = state.global_step >= state.max_steps
        if is_last or self._cadence.is_due(state.global_step, self._live.collect()[0]):
            self.save(state)

    def save(self, state: TrainerState) -> None:
        """Copy the live weights and hand them to the writer, unless this step is saved already.

        Raises:
            CheckpointError: An earlier step could not be written.
        """
        step = state.global_step
        # A Trainer that resumes after its last step takes one step more than `max_steps`.
        if step in {0, self._last_saved_step} or step > state.max_steps:
            return
        live, convert = self._live.collect()
        snapshot: Snapshot | None
        if self._live.is_sharded:
            snapshot = self._snapshots.gather(live, is_main=self._writer is not None)
        else:
            snapshot = self._snapshots.take(live) if self._writer else None
        self._last_saved_step = step
        self._cadence.record_save(live)
        if snapshot is not None:
            self._offer(snapshot, convert, state)
        if self._live.is_sharded:
            self._processes.wait()

    def _offer(self, snapshot: Snapshot, convert: Convert, state: TrainerState) -> None:
        """Hand a copy to the writer thread, once its queue has room."""
        losses = (line["loss"] for line in reversed(state.log_history) if "loss" in line)
        offered = Offered(
            step=state.global_step,
            bits=lambda: convert(snapshot.bits()),
            release=snapshot.release,
            files=self._live.files,
            train_loss=next(losses, None),
            distance=self._cadence.distance,
        )
        if self._writer is not None:
            self._writer.offer(offered)

    def flush(self) -> None:
        """Wait until all saved steps are on disk.

        Raises:
            CheckpointError: A checkpoint could not be written.
        """
        self._live.refresh()
        if self._writer is not None:
            self._writer.flush()
        self._processes.wait()

    def close(self) -> None:
        """Wait until all saved steps are on disk, and end the writer thread.

        Raises:
            CheckpointError: A checkpoint could not be written.
        """
        if self._writer is not None:
            self._writer.close()

    def _make_cadence(
        self, section: TrajectorySection, state: TrainerState, dtype: torch.dtype | None
    ) -> Cadence:
        if section.log_checkpoints is not None:
            return LogSteps(section.log_checkpoints, state.max_steps)
        if section.every_distance is None:
            return EverySteps(section.every_steps)
        if self._live.is_sharded:
            raise UsageError(
                "`every_distance` needs whole weights on each process, and these are sharded. "
                "Set `every_steps` or `log_checkpoints` instead."
            )
        run, step = self._run, state.global_step
        saved_steps = [] if run is None else [other for other in run.steps if other <= step]
        if run is None or not saved_steps:
            return ByDistance(section.every_distance, self._live.collect()[0], 0.0, dtype)
        weights = read_checkpoint(run, saved_steps[-1])
        distance = run.entry(saved_steps[-1]).distance or 0.0
        return ByDistance(section.every_distance, weights, distance, dtype)


def stored_dtype(
    section: TrajectorySection, args: TrainingArguments, *, is_adapter: bool
) -> torch.dtype | None:
    """Return the dtype checkpoints are stored in; None for the live one.

    Under mixed precision the live weights of a full model are fp32 master weights, while training
    computes in 16 bits: checkpoints are stored in 16 bits.
    """
    if section.dtype != "auto":
        dtype: torch.dtype = getattr(torch, section.dtype)
        return dtype
    if is_adapter or not (args.bf16 or args.fp16):
        return None
    return torch.bfloat16 if args.bf16 else torch.float16


def _is_resized(model: PeftModel, run: Run) -> bool:
    return is_vocabulary_resized(model, base_folder(run.base))
