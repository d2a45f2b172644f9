"""Let training by rewards be saved only where it can be resumed exactly.

GRPO generates completions for several batches at once and may use them for several steps. TRL does
not save them: resumed in between, it would generate anew, and train another model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from typing_extensions import override

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class DelayedSaveCallback(TrainerCallback):
    """Puts a save off until what was generated is used up; the last step is always saved."""

    def __init__(self) -> None:
        self._is_owed = False

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **live: Any
    ) -> None:
        batches: Any = args
        used = state.global_step * args.gradient_accumulation_steps
        is_whole = used % (batches.steps_per_generation * batches.num_iterations) == 0
        if control.should_save or self._is_owed:
            self._is_owed = not (is_whole or state.global_step >= state.max_steps)
            control.should_save = not self._is_owed
