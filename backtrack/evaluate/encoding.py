"""From text to the token ids that a model reads and scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backtrack.errors import ObjectiveError
from backtrack.evaluate.language_model import ScoredSequence
from backtrack.evaluate.shared_reading.prefix_tree import num_shared

if TYPE_CHECKING:
    from collections.abc import Sequence


def encode(tokenizer: Any, text: str, *, is_templated: bool = False) -> list[int]:
    """Token ids with the tokenizer's opening tokens, and no closing one.

    Args:
        tokenizer: The model's tokenizer.
        text: The text.
        is_templated: The text comes from a chat template, which writes the opening tokens itself.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=not is_templated, verbose=False)[
        "input_ids"
    ]
    has_closing_token = (
        not is_templated
        and len(ids) > 1
        and ids[-1] == tokenizer.eos_token_id
        and not text.endswith(tokenizer.eos_token)
    )
    return ids[:-1] if has_closing_token else ids


def encode_continuations(
    tokenizer: Any, prompt: str, completions: Sequence[str], *, is_templated: bool = False
) -> list[ScoredSequence]:
    """Each completion after the prompt, all scored from the same position on.

    Prompt and completion are encoded as one text, as a model reads them. Scoring begins at the
    first token in which any of the completions differs from the encoded prompt, so a token that
    spans the boundary belongs to the completion, and the completions share what is only read.

    Raises:
        ObjectiveError: There is no prompt, and the tokenizer has no token to read first.
    """
    prompt_ids = encode(tokenizer, prompt, is_templated=is_templated)
    sequences = [encode(tokenizer, prompt + c, is_templated=is_templated) for c in completions]
    first = min(num_shared(prompt_ids, ids) for ids in sequences)
    if first > 0:
        return [ScoredSequence(ids, first) for ids in sequences]
    opening = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if opening is None:
        raise ObjectiveError(
            "a completion without a prompt cannot be scored: the tokenizer has neither a BOS nor "
            "an EOS token to read first. Give every item a prompt."
        )
    return [ScoredSequence([opening, *ids], 1) for ids in sequences]


def user_turn(tokenizer: Any, text: str) -> str:
    """The text as a user's turn of the tokenizer's chat template, ready for an answer.

    Raises:
        ObjectiveError: The tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ObjectiveError(
            "`apply_chat_template` is set, but the tokenizer has no chat template. "
            "Leave it out, or use the tokenizer of a chat model."
        )
    turn = [{"role": "user", "content": text}]
    templated: str = tokenizer.apply_chat_template(
        turn, tokenize=False, add_generation_prompt=True
    )
    return templated
