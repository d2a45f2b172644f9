"""Delay the Trainer's saves under GRPO to steps from which it can resume exactly.

GRPO generates completions for several batches at once, and may use them for several steps. TRL
does not save them: resumed in between, it would generate others, and training would differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from typing_extensions import override

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class DelayedSaveCallback(TrainerCallback):
    """Delays a save until all generated completions are used; the last step is always saved."""

    def __init__(self) -> None:
        self._is_pending = False

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        grpo: Any = args
        num_used = state.global_step * args.gradient_accumulation_steps
        are_all_used = num_used % (grpo.steps_per_generation * grpo.num_iterations) == 0
        if control.should_save or self._is_pending:
            self._is_pending = not (are_all_used or state.global_step >= state.max_steps)
            control.should_save = not self._is_pending
