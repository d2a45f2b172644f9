"""Completions of prompts that share little, in rows of their own.

Of a model whose cache is keys and values, rows whose completion has ended leave the batch; other
models (recurrent, hybrid) complete by transformers' `generate`, whose rows all stay to the end.
A shorter prompt is padded on its left. Some of these models see what pads it, and some mix up
rows: their prompts are completed with those of their length, or one at a time.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import DynamicCache, GenerationConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from backtrack.evaluate.shared_reading.passes import Budget
    from backtrack.evaluate.token_choice import TokenChoice

_log = logging.getLogger(__name__)
_said: set[str] = set()
Together = Literal["all", "equal", "none"]
"""Which prompts may be one batch: all, those of equal length, or none."""
MOST_DIFFERENCE = {"full": 0.05, "half": 0.25}
"""Of a row's logits in a batch and alone, relative to their spread, by precision.

Rounding makes up to 0.000002 and 0.1 of it, padding that is seen half of it or more."""


def completions(
    model: Any,
    prompts: Sequence[list[int]],
    choice: TokenChoice,
    budget: Budget,
    *,
    may_leave: bool = False,
    together: Together = "all",
) -> Iterator[tuple[int, list[list[int]]]]:
    """Index and completion of each prompt, in a list of its own, once its batch is done.

    Args:
        model: A live model in evaluation mode.
        prompts: Token ids, none empty.
        choice: Chooses tokens, by the index of each prompt.
        budget: Bounds of a batch.
        may_leave: The cache is keys and values, so that rows can leave it.
        together: Which prompts may be one batch.
    """
    write = _write if may_leave else _generate
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    with _without_settings_of_its_own(model):
        while order:
            longest = len(prompts[order[0]]) + choice.max_new_tokens
            size = max(min(budget.rows, budget.cached_tokens // longest), 1)
            lengths = [len(prompts[index]) for index in order[:size]]
            size = {"all": size, "equal": lengths.count(lengths[0]), "none": 1}[together]
            batch, order = order[:size], order[size:]
            written = write(model, [prompts[index] for index in batch], batch, choice)
            yield from ((index, [ids]) for index, ids in zip(batch, written, strict=True))


@torch.inference_mode()
def rows_together(model: Any) -> Together:
    """Which prompts are completed in one batch as each by itself, by trial.

    Where it is not all, it is logged, once for each kind of model.

    Args:
        model: A live model in evaluation mode.
    """
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    row, equal, longer = (
        [token % vocabulary for token in part] for part in (range(3, 5), range(5, 7), range(5, 25))
    )
    with _without_settings_of_its_own(model):
        alone = _logits_of_last(model, [row])
        precision = "full" if torch.finfo(model.dtype).bits >= 32 else "half"
        most = MOST_DIFFERENCE[precision] * (alone - alone.mean(dim=-1, keepdim=True)).norm()
        if (_logits_of_last(model, [longer, row]) - alone).norm() <= most:
            return "all"
        is_right = bool((_logits_of_last(model, [equal, row]) - alone).norm() <= most)
    if model.config.model_type not in _said:
        _said.add(model.config.model_type)
        _log.warning(
            "Prompts are completed %s: beside others, %s gives other answers.",
            "with those of their length only" if is_right else "one at a time",
            model.config.model_type,
        )  # fmt: skip
    return "equal" if is_right else "none"


def _logits_of_last(model: Any, prompts: Sequence[list[int]]) -> Tensor:
    """Logits after the last prompt and after two fixed tokens, [3, vocabulary]."""
    ids, mask = _padded(prompts, model.device)
    found = model.generate(
        input_ids=ids,
        attention_mask=mask.long(),
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        ),
        logits_processor=[
            lambda _, scores: torch.arange(scores.shape[1]).to(scores).expand_as(scores)
        ],
    )
    return torch.stack(found.logits)[:, -1].float()


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
