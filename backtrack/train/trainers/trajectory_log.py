"""Log what the trajectory has come to beside the loss, wherever the Trainer reports to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback
from typing_extensions import override

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from backtrack.run.directory import Run


class TrajectoryLogCallback(TrainerCallback):
    """Logs how many checkpoints there are and their bytes, when either has changed."""

    def __init__(self, trainer: Any, run: Run | None) -> None:
        """Say whose logs get the figures.

        Args:
            trainer: That trains.
            run: That it writes; none on processes other than the main one.
        """
        self._trainer = trainer
        self._run = run
        self._steps: tuple[int, ...] = ()

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        if self._run is None or self._run.steps == self._steps:
            return
        self._steps = self._run.steps
        found = {
            "backtrack/checkpoints": float(len(self._steps)),
            "backtrack/trajectory_bytes": float(sum(e.num_bytes for e in self._run.entries())),
        }
        log_extra_values(self._trainer, control, found)


def log_extra_values(trainer: Any, control: TrainerControl, figures: dict[str, float]) -> None:
    """Log figures of ours, and leave the step's own log as due as it was.

    Args:
        trainer: That trains.
        control: Its state of what is due.
        figures: By name.
    """
    is_due = control.should_log
    # Past TRL's own `log`, which would take the step's figures for its own.
    Trainer.log(trainer, figures)
    control.should_log = is_due
