"""Two questions to a causal language model: how likely is a text, and how does it go on.

Promised: sequences are put in batches by length and then by the order given, so the same
sequences make the same batches at every call; padding is masked, and no sampling setting of the
model counts.
Not promised: the last bits. Another set of sequences makes other batches, and a batch's shape
moves the rounding of matrix products.

The model is one in this process, or one that an engine serves; the tokens are the same for both.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from backtrack.errors import ObjectiveError
from backtrack.evaluate.served import Served

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from backtrack.recipe import SamplingSection


class Scored(NamedTuple):
    """Tokens of which those from `first` on are scored, and those before are read."""

    ids: list[int]
    first: int

    @property
    def num_tokens(self) -> int:
        """Tokens that are scored."""
        return len(self.ids) - self.first


@contextmanager
def evaluating(model: Any, name: str) -> Iterator[None]:
    """Inference in eval mode; afterwards every module is in the mode it was in.

    Raises:
        ObjectiveError: The device ran out of memory.
    """
    if isinstance(model, Served):
        yield
        return
    import torch

    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    except torch.OutOfMemoryError as error:
        raise ObjectiveError(
            f"{name}: the device ran out of memory. Lower `search.batch_size` in the recipe."
        ) from error
    finally:
        for module in training:
            module.training = True


def context_tokens(model: Any) -> int | None:
    """Tokens the model can read at once; none where its configuration does not say."""
    if isinstance(model, Served):
        return model.context_tokens
    limit: int | None = getattr(
        model.config.get_text_config(decoder=True), "max_position_embeddings", None
    )
    return limit


def encode(tokenizer: Any, text: str, *, is_templated: bool = False) -> list[int]:
    """Token ids with the tokenizer's opening tokens, and no closing one.

    A templated text (one from a chat template) brings its own opening tokens.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=not is_templated, verbose=False)[
        "input_ids"
    ]
    end = tokenizer.eos_token_id
    if (
        not is_templated
        and len(ids) > 1
        and ids[-1] == end
        and not text.endswith(tokenizer.eos_token)
    ):
        return ids[:-1]
    return ids


def continuations(
    tokenizer: Any, prompt: str, completions: Sequence[str], *, is_templated: bool = False
) -> list[Scored]:
    """Each completion after the prompt, scored from the same token on.

    Prompt and completion are encoded as one text, as a model reads them. The first scored token
    is the first in which any of the completions differs from the encoded prompt, so a token that
    spans the boundary counts to the completion, and rivals are given the same tokens to read.
    """
    read = encode(tokenizer, prompt, is_templated=is_templated)
    whole = [encode(tokenizer, prompt + c, is_templated=is_templated) for c in completions]
    first = min(_num_shared(read, ids) for ids in whole)
    if first > 0:
        return [Scored(ids, first) for ids in whole]
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise ObjectiveError(
            "a completion without a prompt cannot be scored: the tokenizer has neither a BOS nor "
            "an EOS token to read first. Give every item a prompt."
        )
    return [Scored([start, *ids], 1) for ids in whole]


def _num_shared(left: Sequence[int], right: Sequence[int]) -> int:
    shared = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        shared += 1
    return shared


def losses(model: Any, sequences: Sequence[Scored], batch_size: int) -> list[float]:
    """Summed negative log-likelihood of each sequence's scored tokens, in nats.

    A sequence longer than the model's context loses tokens from its left, read ones before scored
    ones; one token is always read.
    """
    limit = context_tokens(model)
    cut = [_cut(sequence, limit) for sequence in sequences]
    if isinstance(model, Served):
        return model.losses(cut)
    found = [0.0] * len(cut)
    for batch in _batches([len(s.ids) for s in cut], batch_size):
        values = _batch_losses(model, [cut[index] for index in batch])
        for index, value in zip(batch, values, strict=True):
            found[index] = value
    return found


def fitting(sequence: Scored, model: Any) -> Scored:
    """The sequence as `losses` reads it: cut from the left to the model's context."""
    return _cut(sequence, context_tokens(model))


def _cut(sequence: Scored, limit: int | None) -> Scored:
    excess = 0 if limit is None else max(0, len(sequence.ids) - limit)
    return Scored(sequence.ids[excess:], max(sequence.first - excess, 1))


def _batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Positions, the longest sequences first, in groups of `batch_size`."""
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _batch_losses(model: Any, batch: Sequence[Scored]) -> list[float]:
    from torch.nn.functional import cross_entropy

    ids, mask = _padded([s.ids for s in batch], 0, model.device, is_left=False)
    logits = model(input_ids=ids, attention_mask=mask).logits
    found = []
    for row, sequence in enumerate(batch):
        # One row in fp32 at a time: a batch of large vocabularies in fp32 would not fit.
        scored = slice(sequence.first, len(sequence.ids))
        before = slice(sequence.first - 1, len(sequence.ids) - 1)
        each = cross_entropy(logits[row, before].float(), ids[row, scored], reduction="none")
        found.append(float(each.double().sum()))
    return found


def _padded(
    rows: Sequence[Sequence[int]], pad: int, device: Any, *, is_left: bool
) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [rows, longest]."""
    import torch

    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if is_left else slice(0, len(row))
        ids[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return ids.to(device), mask.to(device)


class Greedy(NamedTuple):
    """How a completion ends: after so many new tokens, or before the first of `stop`."""

    max_new_tokens: int
    stop: tuple[str, ...]


def complete(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], ends: Greedy, batch_size: int
) -> list[str]:
    """The greedy completion of each prompt, cut before the first stop string.

    A prompt that leaves no room for `max_new_tokens` in the model's context is cut from its left.

    Raises:
        ObjectiveError: `max_new_tokens` leaves no room for any prompt.
    """
    cut = _with_room(model, prompts, ends)
    if isinstance(model, Served):
        return [texts[0] for texts in _asked(model, tokenizer, cut, ends, None)]
    found = [""] * len(cut)
    for batch in _batches([len(ids) for ids in cut], batch_size):
        texts = _complete_batch(model, tokenizer, [cut[index] for index in batch], ends)
        for index, text in zip(batch, texts, strict=True):
            found[index] = text
    return found


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    ends: Greedy,
    sampling: SamplingSection,
) -> list[list[str]]:
    """Sampled completions of each prompt, cut as greedy ones are.

    Raises:
        ObjectiveError: `max_new_tokens` leaves no room for any prompt, or no engine serves the
            model.
    """
    require_served(model)
    return _asked(model, tokenizer, _with_room(model, prompts, ends), ends, sampling)


def require_served(model: Any) -> None:
    """Refuse to sample where completions have no seeds of their own.

    Raises:
        ObjectiveError: The model is one in this process.
    """
    if not isinstance(model, Served):
        raise ObjectiveError(
            "`sampling` needs `engine: vllm`, where each completion has a seed of its own. Leave "
            "it out for greedy completions."
        )


def _with_room(model: Any, prompts: Sequence[list[int]], ends: Greedy) -> list[list[int]]:
    """The prompts, cut from the left where the new tokens would not fit behind them."""
    limit = context_tokens(model)
    room = None if limit is None else limit - ends.max_new_tokens
    if room is not None and room < 1:
        raise ObjectiveError(
            f"{ends.max_new_tokens} new tokens leave no room for a prompt in the model's context "
            f"of {limit} tokens. Lower `max_new_tokens`."
        )
    return [ids if room is None else ids[-room:] for ids in prompts]


def _asked(
    model: Served,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    ends: Greedy,
    sampling: SamplingSection | None,
) -> list[list[str]]:
    ending = _ending_tokens(model, tokenizer)
    made = model.complete(prompts, ends, ending, sampling)
    return [[_text(tokenizer, ids, ending, ends.stop) for ids in each] for each in made]


def _complete_batch(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], ends: Greedy
) -> list[str]:
    ending = _ending_tokens(model, tokenizer)
    pad = next(iter(ending), 0) if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids, mask = _padded(prompts, pad, model.device, is_left=True)
    width = ids.shape[1]
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=_greedy_settings(ends.max_new_tokens, ending, pad),
        stopping_criteria=[_StopStrings(tokenizer, ends.stop, width)] if ends.stop else None,
    )
    return [_text(tokenizer, row[width:], ending, ends.stop) for row in made.tolist()]


def _ending_tokens(model: Any, tokenizer: Any) -> list[int]:
    of_model = model.generation_config.eos_token_id
    listed = of_model if isinstance(of_model, list) else [of_model]
    return sorted({token for token in [*listed, tokenizer.eos_token_id] if token is not None})


def _greedy_settings(max_new_tokens: int, ending: list[int], pad: int) -> Any:
    """Plain greedy search.

    `generate` fills what is left out from the model's own `generation_config.json`, which often
    holds a temperature or a repetition penalty; so each of them is named here.
    """
    from transformers import GenerationConfig

    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        eos_token_id=ending or None,
        pad_token_id=pad,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
    )


def _text(tokenizer: Any, ids: Sequence[int], ending: Sequence[int], stop: Sequence[str]) -> str:
    end = next((place for place, token in enumerate(ids) if token in ending), len(ids))
    text: str = _decoded(tokenizer, ids[:end])
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


def _decoded(tokenizer: Any, ids: Any) -> Any:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class _StopStrings:
    """Says which rows have written a stop string; only the newest tokens are looked at."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], width: int) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._width = width
        # A token is at least a byte; some tokens more, for a space the decoder drops in front.
        self._look_back = max(len(s.encode()) for s in stop) + 4

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        import torch

        start = max(self._width, input_ids.shape[1] - self._look_back)
        ends = [_decoded(self._tokenizer, row) for row in input_ids[:, start:].tolist()]
        done = [any(s in end for s in self._stop) for end in ends]
        return torch.tensor(done, device=input_ids.device, dtype=torch.bool)
