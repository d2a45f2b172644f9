"""Facts that a plan needs of what is not at hand: bases' shapes, and how long tasks' prompts are.

Shapes are those of the bases' own config.json, checked by the total of weights they give
(7,615,616,512 and 3,212,749,824). Prompts of MATH-500, IFEval and those with few-shot examples
were measured on the tasks' documents; the bare ones of gsm8k and bbh are guesses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-7B": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "vocab_size": 152064, "tie_word_embeddings": False, "dtype": "bfloat16",
    },
    "meta-llama/Llama-3.2-3B-Instruct": {
        "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True, "dtype": "bfloat16",
    },
}  # fmt: skip
"""By Hub name."""


class TaskShape(NamedTuple):
    """What one document of an lm-eval task costs.

    Attributes:
        read: Characters read with the task's own examples before it, over all its requests.
        read_bare: Likewise without examples.
        written: New tokens at most, as the task sets it; 0 where likelihoods are compared.
    """

    read: int
    read_bare: int
    written: int


TASKS: dict[str, TaskShape] = {
    "minerva_math500": TaskShape(2020, 210, 256),
    "ifeval": TaskShape(210, 210, 1280),
    "nq_open": TaskShape(77, 77, 256),
    "leaderboard_bbh": TaskShape(8406, 2100, 0),
    "gsm8k": TaskShape(2976, 250, 256),
    "aime24": TaskShape(352, 352, 256),
}
"""By name."""

CHARACTERS_A_TOKEN = 4
"""Of English text, by the tokenizers of today's models."""
