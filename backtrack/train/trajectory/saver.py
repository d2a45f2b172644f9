"""Keep the steps of one training that are due: copy what is live, hand it to the writer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from backtrack.errors import UsageError
from backtrack.run.background import Offered, TrajectoryWriter
from backtrack.run.budget import Budget
from backtrack.run.reader import base_folder, read_checkpoint
from backtrack.train.trajectory.base_model import is_vocabulary_resized
from backtrack.train.trajectory.cadence import ByDistance, EverySteps, LogSteps, axis_of
from backtrack.train.trajectory.live_weights import LiveWeights
from backtrack.train.trajectory.snapshot import Snapshots

if TYPE_CHECKING:
    from transformers import TrainerState, TrainingArguments

    from backtrack.recipe import TrajectorySection
    from backtrack.run.directory import Run
    from backtrack.train.trajectory.cadence import Cadence
    from backtrack.train.trajectory.snapshot import Snapshot


class CheckpointSaver:
    """What turns live weights into checkpoints, from the begin of a training to its end.

    Where weights are sharded it stands on every process, for all must gather; else on the main one
    alone does anything.
    """

    def __init__(
        self,
        run: Run | None,
        section: TrajectorySection,
        model: Any,
        args: TrainingArguments,
        state: TrainerState,
        tokenizer: Any,
    ) -> None:
        """Look at the model and start the writer.

        Args:
            run: The run; none on processes other than the main one.
            section: Which steps are kept, and how.
            model: The live model.
            args: The Trainer's.
            state: Where training begins or goes on.
            tokenizer: Put beside each checkpoint if given.

        Raises:
            UsageError: The weights are sharded in a way that this cadence cannot follow.
        """
        self._run = run
        is_adapter = isinstance(model, PeftModel)
        dtype = stored_dtype(section, args, is_adapter=is_adapter)
        is_resized = run is not None and is_adapter and _is_resized(model, run)
        self._live = LiveWeights(model, is_resized=is_resized, dtype=dtype)
        self._snapshots = Snapshots(dtype)
        self._files = {} if tokenizer is None else _files_of(tokenizer)
        step = state.global_step
        # Sharded, every process must gather what one gathers, and only one knows the run.
        is_kept = run is not None and step in run.steps and not self._live.is_sharded
        self._last_step = step if is_kept else 0
        self._cadence = self._begin_cadence(section, state, dtype)
        self._writer: TrajectoryWriter | None = None
        if run is not None:
            self._writer = TrajectoryWriter(
                run,
                is_coded=not is_adapter and section.storage != "plain",
                budget=Budget(section.max_bytes, section.max_checkpoints, axis_of(section)),
                key_every=section.key_every,
                begun_at=step,
            )

    def save_if_due(self, state: TrainerState) -> None:
        """Keep the step if it is due, or the last one known in advance."""
        if state.global_step == 0 or not (self._live.is_sharded or self._writer):
            return
        is_last = state.global_step >= state.max_steps
        if is_last or self._cadence.is_due(state.global_step, self._live.collect()[0]):
            self.keep(state)

    def keep(self, state: TrainerState) -> None:
        """Copy the live weights and hand them to the writer.

        Raises:
            CheckpointError: An earlier step could not be written.
        """
        step = state.global_step
        # Resumed when it has finished, the Trainer takes one step more than it was asked for.
        if step in {0, self._last_step} or step > state.max_steps:
            return
        live, convert = self._live.collect()
        snapshot: Snapshot | None
        if self._live.is_sharded:
            snapshot = self._snapshots.gather(live, is_main=self._writer is not None)
        else:
            snapshot = self._snapshots.take(live) if self._writer else None
        self._last_step = step
        if isinstance(self._cadence, ByDistance):
            self._cadence.keep(live)
        if snapshot is None or self._writer is None:
            return
        losses = (line["loss"] for line in reversed(state.log_history) if "loss" in line)
        self._writer.offer(
            Offered(
                step=step,
                bits=lambda: convert(snapshot.bits()),
                release=snapshot.release,
                files={**self._live.files, **self._files},
                train_loss=next(losses, None),
                distance=getattr(self._cadence, "travelled", None),
            )
        )

    def flush(self) -> None:
        """Wait until every step so far is on disk.

        Raises:
            CheckpointError: One could not be written.
        """
        self._live.refresh()
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flush, and end the writer.

        Raises:
            CheckpointError: A checkpoint could not be written.
        """
        if self._writer is not None:
            self._writer.close()

    def _begin_cadence(
        self, section: TrajectorySection, state: TrainerState, dtype: torch.dtype | None
    ) -> Cadence:
        if section.log_checkpoints is not None:
            return LogSteps(section.log_checkpoints, state.max_steps)
        if section.every_distance is None:
            return EverySteps(section.every_steps)
        if self._live.is_sharded:
            raise UsageError(
                "`every_distance` needs whole weights on each process, and these are sharded. "
                "Give `every_steps` or `log_checkpoints`."
            )
        run, step = self._run, state.global_step
        kept = [] if run is None else [other for other in run.steps if other <= step]
        if run is None or not kept:
            return ByDistance(section.every_distance, self._live.collect()[0], 0.0, dtype)
        weights = read_checkpoint(run, kept[-1])
        travelled = run.entry(kept[-1]).distance or 0.0
        return ByDistance(section.every_distance, weights, travelled, dtype)


def stored_dtype(
    section: TrajectorySection, args: TrainingArguments, *, is_adapter: bool
) -> torch.dtype | None:
    """The type checkpoints are kept in; none is the live one.

    Under mixed precision the live weights of a whole model are fp32 masters, and training computes
    in 16 bits.
    """
    if section.dtype != "auto":
        kind: torch.dtype = getattr(torch, section.dtype)
        return kind
    if is_adapter or not (args.bf16 or args.fp16):
        return None
    return torch.bfloat16 if args.bf16 else torch.float16


def _is_resized(model: PeftModel, run: Run) -> bool:
    return is_vocabulary_resized(model, base_folder(run.base))


def _files_of(tokenizer: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
