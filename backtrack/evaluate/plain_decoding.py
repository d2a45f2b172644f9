"""Completions of prompts that share little, in rows of their own.

Of a model whose cache is keys and values, rows whose completion has ended leave the batch; other
models (recurrent, hybrid) complete by transformers' `generate`, whose rows all stay to the end.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, GenerationConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from backtrack.evaluate.shared_reading.passes import Budget
    from backtrack.evaluate.token_choice import TokenChoice


def completions(
    model: Any,
    prompts: Sequence[list[int]],
    choice: TokenChoice,
    budget: Budget,
    *,
    may_leave: bool = False,
) -> Iterator[tuple[int, list[list[int]]]]:
    """Index and completion of each prompt, in a list of its own, once its batch is done.

    Args:
        model: A live model in evaluation mode.
        prompts: Token ids, none empty.
        choice: Chooses tokens, by the index of each prompt.
        budget: Bounds of a batch.
        may_leave: The cache is keys and values, so that rows can leave it.
    """
    write = _write if may_leave else _generate
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    with _without_settings_of_its_own(model):
        while order:
            longest = len(prompts[order[0]]) + choice.max_new_tokens
            size = max(min(budget.rows, budget.cached_tokens // longest), 1)
            batch, order = order[:size], order[size:]
            written = write(model, [prompts[index] for index in batch], batch, choice)
            yield from ((index, [ids]) for index, ids in zip(batch, written, strict=True))


def _padded(prompts: Sequence[list[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Token ids padded on their left, and whether each is one of the prompt's, [rows, longest]."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts], device=device)
    lengths = torch.tensor([len(row) for row in prompts], device=device)
    return ids, torch.arange(width, device=device) >= width - lengths[:, None]


def _write(
    model: Any, prompts: Sequence[list[int]], numbers: Sequence[int], choice: TokenChoice
) -> list[list[int]]:
    """New token ids after each prompt of one batch, which rows leave once half have ended."""
    ids, mask = _padded(prompts, model.device)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    written: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    is_over = [False] * len(prompts)
    for _ in range(choice.max_new_tokens):
        logits = model(
            input_ids=ids, attention_mask=mask.long(), position_ids=positions,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip
        (newest,) = choice.next_tokens(logits[None], [numbers[row] for row in rows])
        for row, token in zip(rows, newest.tolist(), strict=True):
            if not is_over[row]:
                written[row].append(token)
                is_over[row] = choice.is_over(written[row])
        at = [i for i, row in enumerate(rows) if not is_over[row]]
        if not at:
            break
        ids, positions = newest[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if len(at) <= len(rows) // 2:
            rows = [rows[i] for i in at]
            cache.batch_select_indices(torch.tensor(at, device=ids.device))
            ids, positions, mask = ids[at], positions[at], mask[at]
    return written


def _generate(
    model: Any, prompts: Sequence[list[int]], numbers: Sequence[int], choice: TokenChoice
) -> list[list[int]]:
    """New token ids after each prompt of one batch."""
    ids, mask = _padded(prompts, model.device)
    width = ids.shape[1]

    def changed(_ids: Tensor, scores: Tensor) -> Tensor:
        return choice.changed(scores, numbers)

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
        logits_processor=[changed] if choice.changes_logits else None,
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
