"""How long the prompts of known lm-eval tasks are, for estimates without their documents.

Prompts of MATH-500, IFEval and those with few-shot examples were measured on the tasks'
documents; the bare ones of gsm8k and bbh, and that of our medicine, are guesses.
"""

from __future__ import annotations

from typing import NamedTuple


class TaskLengths(NamedTuple):
    """How long one document of an lm-eval task is.

    Attributes:
        read: Characters read with the task's own examples before it, over all its requests.
        read_bare: Likewise without examples.
        written: New tokens at most, as the task sets it, over all its samples; 0 where
            likelihoods are compared.
        num_documents: Documents of the task, where they are few.
    """

    read: int
    read_bare: int
    written: int
    num_documents: int | None = None


TASK_LENGTHS: dict[str, TaskLengths] = {
    "minerva_math500": TaskLengths(2020, 210, 256),
    "ifeval": TaskLengths(210, 210, 1280),
    "nq_open": TaskLengths(77, 77, 256),
    "leaderboard_bbh": TaskLengths(8406, 2100, 0),
    "gsm8k": TaskLengths(2976, 250, 256),
    "aime24": TaskLengths(352, 352, 256),
    "peft_arena_math500": TaskLengths(216, 216, 16 * 8192, 500),
    "peft_arena_amc23": TaskLengths(289, 289, 16 * 8192, 40),
    "peft_arena_aime24": TaskLengths(354, 354, 16 * 8192, 30),
    "peft_arena_medicine": TaskLengths(800, 800, 8192),
    "peft_arena_ifeval": TaskLengths(225, 225, 1025),
    "peft_arena_nq": TaskLengths(200, 200, 50),
    "peft_arena_bbh": TaskLengths(3227, 3227, 512),
}
"""By name."""

CHARACTERS_PER_TOKEN = 4
"""Of English text, by the tokenizers of today's models."""
