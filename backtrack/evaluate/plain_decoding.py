"""Completions by transformers' `generate`, for models that cannot read prefixes once."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from backtrack.evaluate.shared_reading.passes import Budget
    from backtrack.evaluate.token_choice import TokenChoice


def completions(
    model: Any, prompts: Sequence[list[int]], choice: TokenChoice, budget: Budget
) -> Iterator[tuple[int, list[list[int]]]]:
    """Index and completion of each prompt, in a list of its own, once its batch is done.

    Args:
        model: A live model in evaluation mode.
        prompts: Token ids, none empty.
        choice: Chooses tokens, by the index of each prompt.
        budget: Bounds of a batch.
    """
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    with _without_settings_of_its_own(model):
        while order:
            longest = len(prompts[order[0]]) + choice.max_new_tokens
            size = max(min(budget.rows, budget.cached_tokens // longest), 1)
            batch, order = order[:size], order[size:]
            written = _generate(model, [prompts[index] for index in batch], batch, choice)
            yield from ((index, [ids]) for index, ids in zip(batch, written, strict=True))


def _generate(
    model: Any, prompts: Sequence[list[int]], numbers: Sequence[int], choice: TokenChoice
) -> list[list[int]]:
    """New token ids after each prompt of one batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts], device=model.device)
    lengths = torch.tensor([len(row) for row in prompts], device=model.device)
    mask = torch.arange(width, device=model.device) >= width - lengths[:, None]

    def with_noise(_ids: Tensor, scores: Tensor) -> Tensor:
        return choice.with_noise(scores, numbers)

    def is_over(ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        over = [choice.is_over(row) for row in ids[:, width:].tolist()]
        return torch.tensor(over, device=ids.device, dtype=torch.bool)

    config: Any = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=choice.max_new_tokens,
        eos_token_id=list(choice.ending) or None,
        pad_token_id=next(iter(choice.ending), 0),
        do_sample=False,
        use_cache=True,
    )
    written: Tensor = model.generate(
        input_ids=ids,
        attention_mask=mask.long(),
        generation_config=config,
        logits_processor=[with_noise] if choice.is_sampled else None,
        stopping_criteria=[is_over],
    )
    rows: list[list[int]] = written[:, width:].tolist()
    return rows


@contextmanager
def _without_settings_of_its_own(model: Any) -> Iterator[None]:
    """A model without the settings of its `generation_config.json`.

    `generate` takes whatever it is not told from there: penalties, suppressed tokens, least
    lengths, and what later versions add.
    """
    inner = getattr(model, "get_base_model", lambda: model)()
    kept = inner.generation_config
    inner.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        inner.generation_config = kept
