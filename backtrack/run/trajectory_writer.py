"""Write a trajectory in a background thread while training continues.

Promised: steps appear in the order they were offered. `flush` and `close` return only when the
last byte is on disk, and raise the thread's error; so does the next `offer`. After an error
nothing more is written. Offered checkpoints are written even if the interpreter exits meanwhile.
Not promised: constant speed. With two checkpoints pending, `offer` blocks, and training with it.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from backtrack.errors import BacktrackError, CheckpointError
from backtrack.run.checkpoint_writer import clean_up, write_checkpoint
from backtrack.run.coded_chain import (
    KEY_EVERY,
    chain_steps,
    dependent,
    drop_checkpoint,
    read_bits,
    recode,
    write_coded,
    write_plain,
)
from backtrack.run.thinning import Thinner, TrajectoryBudget

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from backtrack.run.bits import Bits
    from backtrack.run.directory import Run

MAX_PENDING = 2
"""Number of checkpoints that may be pending before `offer` blocks."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offered:
    """A checkpoint offered to the writer.

    Attributes:
        step: Optimizer step.
        bits: Returns the tensors by their name in the file; waits for a copy still in progress.
        release: Called when the writer no longer needs the tensors' memory.
        files: Contents of the small files beside the weights, by name.
        train_loss: The training loss logged last.
        distance: See `CheckpointEntry`.
    """

    step: int
    bits: Callable[[], Mapping[str, Bits]]
    release: Callable[[], None] = lambda: None
    files: Mapping[str, bytes] = field(default_factory=dict)
    train_loss: float | None = None
    distance: float | None = None


class TrajectoryWriter:
    """Writes a run's checkpoints in one background thread."""

    def __init__(
        self,
        run: Run,
        *,
        is_coded: bool,
        budget: TrajectoryBudget | None = None,
        key_every: int = KEY_EVERY,
        begun_at: int = 0,
    ) -> None:
        """Start the writer, after cleaning up what a killed writer left.

        Args:
            run: The run; no other process may write checkpoints into it.
            is_coded: Code each checkpoint against the previous one; else write plain safetensors.
            budget: How large the trajectory may become.
            key_every: Number of checkpoints from one key frame to the next.
            begun_at: Step that training continues from.
        """
        clean_up(run)
        self._run = run
        self._is_coded = is_coded
        self._thinner = Thinner(run, budget or TrajectoryBudget(), key_every=key_every)
        self._key_every = key_every
        self._last_step = begun_at
        self._slots = threading.BoundedSemaphore(MAX_PENDING)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="backtrack-writer")
        self._waiting: list[Future[None]] = []
        self._error: Exception | None = None
        self._previous: Offered | None = None
        self._has_said_thinned = False

    def offer(self, offered: Offered) -> None:
        """Queue a checkpoint; block while too many are pending.

        Raises:
            CheckpointError: An earlier checkpoint could not be written.
        """
        self._slots.acquire()
        try:
            self._raise_error()
            self._waiting = [future for future in self._waiting if not future.done()]
            self._waiting.append(self._pool.submit(self._take, offered))
        except BaseException:
            self._slots.release()  # no thread takes this checkpoint, so none would release it
            raise

    def flush(self) -> None:
        """Wait until every offered checkpoint is on disk.

        Raises:
            CheckpointError: A checkpoint could not be written.
        """
        for future in self._waiting:
            future.result()
        self._waiting = []
        self._raise_error()

    def close(self) -> None:
        """Flush and end the thread.

        Raises:
            CheckpointError: A checkpoint could not be written.
        """
        self._pool.shutdown(wait=True)
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _take(self, offered: Offered) -> None:
        """In the thread: write one checkpoint, unless an earlier one failed."""
        try:
            if self._error is None:
                self._write(offered)
                self._thin(offered.step)
        except BacktrackError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001  # any error must reach training
            whole = len([step for step in self._run.steps if step < offered.step])
            self._error = CheckpointError(
                f"step {offered.step} could not be written into {self._run.trajectory}: {error}. "
                f"{whole} checkpoints before it are complete. Make room, then resume."
            )
            self._error.__cause__ = error
            # Training may have ended, so that no later call would raise it.
            logger.warning("%s", self._error)
        finally:
            self._slots.release()

    def _write(self, offered: Offered) -> None:
        bits = offered.bits()
        self._drop_skipped(offered.step)
        if not self._is_saved_already(offered.step, bits):
            reference = self._reference(offered.step)

            def write(folder: Path) -> None:
                if self._is_coded:
                    write_coded(folder, bits, reference, offered.files)
                else:
                    write_plain(folder, bits, offered.files)

            write_checkpoint(
                self._run,
                offered.step,
                write,
                train_loss=offered.train_loss,
                distance=offered.distance,
            )
        previous, self._previous = self._previous, offered
        if previous is not None:
            previous.release()
        if not self._is_coded:
            offered.release()
            self._previous = None

    def _drop_skipped(self, step: int) -> None:
        """Delete steps of an interrupted attempt that this one has passed without saving them."""
        for old in self._run.steps:
            if self._last_step < old < step:
                drop_checkpoint(self._run, old, key_every=self._key_every)
        self._last_step = step

    def _is_saved_already(self, step: int, bits: Mapping[str, Bits]) -> bool:
        """Whether the step is on disk with the same weights; else recode what depends on it."""
        if step not in self._run.steps or self._run.entry(step).storage != "coded":
            return False
        successor = dependent(self._run, step)
        try:
            if _are_equal(read_bits(self._run, step), bits):
                return True
            if successor is not None:
                recode(self._run, successor, None)
        except CheckpointError as error:
            logger.warning("replacing a damaged checkpoint: %s", error)
        return False

    def _reference(self, step: int) -> tuple[int, Mapping[str, Bits]] | None:
        """The previous step and its bits; None if a key frame is due."""
        older = [other for other in self._run.steps if other < step]
        if not self._is_coded or not older or self._run.entry(older[-1]).storage != "coded":
            return None
        try:
            if len(chain_steps(self._run, older[-1])) >= self._key_every:
                return None
            if self._previous is not None and self._previous.step == older[-1]:
                return older[-1], self._previous.bits()
            return older[-1], read_bits(self._run, older[-1])
        except CheckpointError as error:
            logger.warning(
                "step %d begins a new chain, since the old one is damaged: %s", step, error
            )
            return None

    def _thin(self, step: int) -> None:
        dropped = self._thinner.thin(step)
        if dropped and not self._has_said_thinned:
            self._has_said_thinned = True
            logger.warning(
                "the budget of %s is used up at step %d: from now on the trajectory is thinned "
                "evenly", self._run.trajectory, step,
            )  # fmt: skip


def _are_equal(old: Mapping[str, Bits], new: Mapping[str, Bits]) -> bool:
    return old.keys() == new.keys() and all(
        (a.dtype, a.shape) == (new[n].dtype, new[n].shape)
        and np.array_equal(a.values, new[n].values)
        for n, a in old.items()
    )
