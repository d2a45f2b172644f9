"""Save the checkpoints of one training that are due: copy live weights, hand them to a writer.

    with CheckpointSaver.begin("runs/mine", model, every_steps=10) as saver:
        for step, batch in enumerate(loader, 1):
            ...
            optimizer.step()
            saver.step(step, loss)

Promised: a save holds training up only for a copy of the trained tensors, unless checkpoints come
faster than they can be written. A failed write stops training with an error and leaves every
earlier checkpoint as it was. Of several processes the main one writes; weights sharded by FSDP2 or
DeepSpeed ZeRO-3 are gathered one tensor at a time, frozen ones only if the base must be written.
The other processes wait for the main one outside of any collective that times out.
Not promised: weights flattened by FSDP1. They are refused with an error that names FSDP1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from accelerate.state import AcceleratorState, DistributedType, is_initialized
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import distributed

from backtrack.errors import UsageError
from backtrack.run.checkpoint_reader import base_folder, read_checkpoint
from backtrack.run.thinning import TrajectoryBudget
from backtrack.run.trajectory_writer import Offered, TrajectoryWriter
from backtrack.train.trajectory.base_model import is_vocabulary_resized, plain_model
from backtrack.train.trajectory.beginning import Beginning
from backtrack.train.trajectory.cadence import (
    ByDistance,
    EverySteps,
    LogSteps,
    section_of,
    spacing_of,
)
from backtrack.train.trajectory.initializations import require_reloadable_initialization
from backtrack.train.trajectory.live_method import active_config, initialization_of
from backtrack.train.trajectory.live_weights import LiveWeights
from backtrack.train.trajectory.processes import Processes
from backtrack.train.trajectory.snapshot import Snapshots

if TYPE_CHECKING:
    from types import TracebackType

    from torch import Tensor

    from backtrack.recipe import TrajectorySection
    from backtrack.run.directory import Run
    from backtrack.train.trajectory.cadence import Cadence
    from backtrack.train.trajectory.live_weights import Convert
    from backtrack.train.trajectory.snapshot import Snapshot

_MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}


class CheckpointSaver:
    """Saves live weights as checkpoints, from the beginning of a training to its end.

    `begin` makes one for a loop of your own; `TrajectoryCallback` has one for a Trainer. If
    weights are sharded, every process needs one, since all must take part in gathering them.
    Otherwise only the main process's does anything.

    Attributes:
        run: The run; None on processes other than the main one.
    """

    def __init__(  # noqa: PLR0913  # what a training knows
        self,
        run: Run | None,
        section: TrajectorySection,
        model: Any,
        *,
        begun_at: int = 0,
        last_step: int | None = None,
        computes_in: torch.dtype | None = None,
        processes: Processes | None = None,
    ) -> None:
        """Find the tensors to save and start the writer thread.

        Args:
            run: The run; None on processes other than the main one.
            section: Which steps are saved, and in which form.
            model: The live model.
            begun_at: Step at which training begins: 0, or the one it resumes from.
            last_step: The last step of training, if it is known.
            computes_in: Dtype of mixed precision, if training computes in another than it keeps.
            processes: The processes of this training; None if it is the only one.

        Raises:
            UsageError: The weights are sharded, and this cadence or adapter needs them whole; or
                the cadence needs the last step, which is not known.
        """
        self.run = run
        self._processes = processes or Processes()
        self._last_step = last_step
        is_adapter = isinstance(model, PeftModel)
        dtype = stored_dtype(section, computes_in, is_adapter=is_adapter)
        is_resized = run is not None and is_adapter and _is_resized(model, run)
        self._live = LiveWeights(model, is_resized=is_resized, dtype=dtype)
        self._snapshots = Snapshots(dtype)
        # With sharded weights all processes must decide alike, and only one knows the run.
        is_saved = run is not None and begun_at in run.steps and not self._live.is_sharded
        self._last_saved_step = begun_at if is_saved else 0
        self._reached: tuple[int, float | Tensor | None] = (begun_at, None)
        self._cadence = self._make_cadence(section, begun_at, dtype)
        self._writer: TrajectoryWriter | None = None
        if run is not None:
            self._writer = TrajectoryWriter(
                run,
                is_coded=not is_adapter and section.storage != "plain",
                budget=TrajectoryBudget(
                    section.max_bytes, section.max_checkpoints, spacing_of(section)
                ),
                key_every=section.key_every,
                begun_at=begun_at,
            )

    @classmethod
    def begin(
        cls,
        path: str | Path,
        model: Any,
        *,
        tokenizer: Any = None,
        base: str | Path | None = None,
        begun_at: int = 0,
        last_step: int | None = None,
        **trajectory: Any,
    ) -> Self:
        """Create a run, or continue it, and return what saves its checkpoints.

        Call it on every process, after the model was prepared (by `accelerator.prepare`, DDP,
        `fully_shard`) and before the first step.

        Args:
            path: The run's folder; it must not exist unless training resumes.
            model: The live model, of transformers or PEFT, wrapped or not.
            tokenizer: Its tokenizer, if it is not the base's.
            base: Folder or Hub name of the model before training. By default it is found if the
                model was loaded from files, and written into the run if it was not.
            begun_at: Step that training resumes from; 0 begins a new run.
            last_step: The last step of training; `log_checkpoints` needs it.
            **trajectory: Keys of a recipe's `trajectory`: `every_steps` (10 by default) or another
                cadence, `max_checkpoints`, `max_bytes`, `storage`, `key_every`, `dtype`. Where
                autocast computes in 16 bits without accelerate, `dtype` says so.

        Raises:
            UsageError: A key is unknown, or the model cannot be saved while it trains.
            RunError: The folder holds a run or other files, or a run of another method.
        """
        section = section_of(trajectory, "CheckpointSaver")
        plain = extract_model_from_parallel(model, keep_torch_compile=False)
        require_savable(plain)
        processes = Processes.of_training()
        beginning = Beginning(
            Path(path), base, begun_at, processes, hint="continue it with `begun_at=STEP`",
            is_main=not distributed.is_initialized() or distributed.get_rank() == 0,
        )  # fmt: skip
        run = beginning.open_run(plain, tokenizer)
        processes.wait()
        mixed = _MIXED.get(AcceleratorState().mixed_precision) if is_initialized() else None
        return cls(run, section, plain, begun_at=begun_at, last_step=last_step, computes_in=mixed,
                   processes=processes)  # fmt: skip

    def step(self, step: int, loss: float | Tensor | None = None) -> None:
        """Save the weights after an optimizer step, if it is due or the last.

        Args:
            step: The step, counted from 1; steps ascend.
            loss: Its training loss, for the index; a tensor is read only if the step is saved.

        Raises:
            UsageError: The step is lower than the one before.
            CheckpointError: An earlier step could not be written.
        """
        if step < self._reached[0]:
            raise UsageError(
                f"step {step} follows step {self._reached[0]}: steps ascend. Count optimizer "
                "steps, from 1 or on from `begun_at`."
            )
        # The loss alone: with its graph it would hold the step's activations.
        self._reached = (step, loss.detach() if isinstance(loss, torch.Tensor) else loss)
        if step == 0 or not (self._live.is_sharded or self._writer):
            return
        is_last = self._last_step is not None and step >= self._last_step
        if is_last or self._cadence.is_due(step, self._live.collect()[0]):
            self.save()

    def save(self) -> None:
        """Save the step reached last, unless it is saved already.

        The weights must still be those of that step.

        Raises:
            CheckpointError: An earlier step could not be written.
        """
        step = self._reached[0]
        # A Trainer that resumes after its last step takes one step more than that.
        is_beyond = self._last_step is not None and step > self._last_step
        if step in {0, self._last_saved_step} or is_beyond:
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
            self._offer(snapshot, convert)
        if self._live.is_sharded:
            self._processes.wait()

    def _offer(self, snapshot: Snapshot, convert: Convert) -> None:
        """Hand a copy to the writer thread, once its queue has room."""
        step, loss = self._reached
        offered = Offered(
            step=step,
            bits=lambda: convert(snapshot.bits()),
            release=snapshot.release,
            files=self._live.files,
            train_loss=None if loss is None else float(loss),
            distance=self._cadence.distance,
        )
        if self._writer is not None:
            self._writer.offer(offered)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Save the last step, unless an error left its weights half updated; wait for the disk."""
        if kind is None:
            self.save()
        self.close()
        if kind is None:
            self._processes.wait()

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
        self, section: TrajectorySection, begun_at: int, dtype: torch.dtype | None
    ) -> Cadence:
        if section.log_checkpoints is not None:
            if self._last_step is None:
                raise UsageError(
                    "`log_checkpoints` spaces steps up to the last one: give `last_step` too."
                )
            return LogSteps(section.log_checkpoints, self._last_step)
        if section.every_distance is None:
            return EverySteps(section.every_steps)
        if self._live.is_sharded:
            raise UsageError(
                "`every_distance` needs whole weights on each process, and these are sharded. "
                "Set `every_steps` or `log_checkpoints` instead."
            )
        run = self.run
        saved_steps = [] if run is None else [step for step in run.steps if step <= begun_at]
        if run is None or not saved_steps:
            return ByDistance(section.every_distance, self._live.collect()[0], 0.0, dtype)
        weights = read_checkpoint(run, saved_steps[-1])
        distance = run.entry(saved_steps[-1]).distance or 0.0
        return ByDistance(section.every_distance, weights, distance, dtype)


def stored_dtype(
    section: TrajectorySection, computes_in: torch.dtype | None, *, is_adapter: bool
) -> torch.dtype | None:
    """Return the dtype checkpoints are stored in; None for the live one.

    Under mixed precision the live weights of a full model are fp32 master weights, while training
    computes in 16 bits: checkpoints are stored in 16 bits.
    """
    if section.dtype != "auto":
        dtype: torch.dtype = getattr(torch, section.dtype)
        return dtype
    return None if is_adapter else computes_in


def require_savable(model: Any) -> None:
    """Refuse a model whose weights cannot be saved while it trains.

    Raises:
        UsageError: It is neither a transformers nor a PEFT model, its adapter's initialization
            cannot be made again, or FSDP1 has flattened its weights.
    """
    plain_model(model)
    if isinstance(model, PeftModel):
        require_reloadable_initialization(initialization_of(active_config(model)))
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


def _is_resized(model: PeftModel, run: Run) -> bool:
    return is_vocabulary_resized(model, base_folder(run.base))
