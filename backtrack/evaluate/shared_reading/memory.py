"""How much a model reads at a time, from the memory that is free when it is first asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backtrack.evaluate.shared_reading.passes import MIN_TOKENS, Budget
from backtrack.free_memory import free_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

SHARE = 0.25
"""Of the free memory that keys and values may take, and that a pass may take."""
MOST = {"cpu": (1024, 64)}
"""Tokens of a pass and sequences of a batch past which little gets faster, by device.

A new token of each of 64 sequences costs SmolLM2-135M on a core 2.7 ms a sequence, of 16 7.2 ms.
"""
MOST_ELSEWHERE = 8192, 128
UNBOUNDED = 1 << 60


def measured(model: Any) -> Budget:
    """The budget of a model on its device, in powers of two so that it rarely changes."""
    most_tokens, most_rows = MOST.get(model.device.type, MOST_ELSEWHERE)
    config = model.config.get_text_config(decoder=True)
    room = SHARE * free_bytes(model.device)
    tokens = _power_of_two(room / _pass_bytes(config, model.dtype))
    cached = _power_of_two(room / _cached_bytes(config, model.dtype))
    return Budget(min(max(tokens, MIN_TOKENS), most_tokens), most_rows, cached)


def fixed(num_sequences: int, lengths: Iterable[int]) -> Budget:
    """So many sequences at a time, and no more tokens than so many of the longest have."""
    return Budget(num_sequences * max(lengths, default=1), num_sequences, UNBOUNDED)


def _pass_bytes(config: Any, dtype: torch.dtype) -> float:
    """Of one token: some layers' states, and its logits in fp32 beside the model's type."""
    inner: int = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    values = 8 * config.hidden_size + 4 * inner + config.vocab_size
    return float(values * dtype.itemsize + 8 * config.vocab_size)


def _cached_bytes(config: Any, dtype: torch.dtype) -> float:
    """Keys and values of one token, in all layers."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return float(2 * config.num_hidden_layers * kept * width * dtype.itemsize)


def _power_of_two(number: float) -> int:
    """The largest that is not above a number."""
    return 1 << max(int(number).bit_length() - 1, 0)
