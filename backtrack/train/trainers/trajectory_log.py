"""Log the trajectory's size beside the loss, to the trackers the Trainer reports to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback
from typing_extensions import override

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from backtrack.run.directory import Run


class TrajectoryLogCallback(TrainerCallback):
    """Logs the number of checkpoints and their bytes whenever they have changed."""

    def __init__(self, trainer: Any, run: Run | None) -> None:
        """Set the trainer and the run.

        Args:
            trainer: The trainer to log with.
            run: The run it writes; None on processes other than the main one.
        """
        self._trainer = trainer
        self._run = run
        self._steps: tuple[int, ...] = ()

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        if self._run is None:
            return
        entries = self._run.entries()
        steps = tuple(entry.step for entry in entries)
        if steps == self._steps:
            return
        self._steps = steps
        values = {
            "backtrack/checkpoints": float(len(self._steps)),
            "backtrack/trajectory_bytes": float(sum(e.num_bytes for e in entries)),
        }
        log_extra_values(self._trainer, control, values)


def log_extra_values(trainer: Any, control: TrainerControl, values: dict[str, float]) -> None:
    """Log values of ours without changing whether the step's own log is due.

    Args:
        trainer: The trainer to log with.
        control: The Trainer's control object.
        values: Values by name.
    """
    is_due = control.should_log
    # TRL's own `log` would add the step's metrics to ours and clear them.
    Trainer.log(trainer, values)
    control.should_log = is_due
