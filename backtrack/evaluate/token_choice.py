"""Which token comes next in a completion, and which one is the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from backtrack.evaluate.language_model import decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from backtrack.evaluate.language_model import CompletionLimits, Sampling


class TokenChoice:
    """The most likely token, or one sampled by a generator of each prompt's own.

    Adding Gumbel noise to the logits and taking the largest draws from their softmax (the Gumbel
    maximum trick), so a prompt's tokens depend on its own seed and not on its batch.

    Attributes:
        max_new_tokens: Length of a completion at most.
        ending: Token ids that end a completion.
        changes_logits: Whether the next token may be another than the most likely one.
    """

    def __init__(
        self,
        tokenizer: Any,
        limits: CompletionLimits,
        ending: Sequence[int],
        sampling: Sampling | None = None,
        seeds: Sequence[int] = (),
        prompts: Sequence[Sequence[int]] = (),
    ) -> None:
        """Set how tokens are chosen.

        Args:
            tokenizer: Decodes what may hold a stop text.
            limits: Where a completion ends, and what repetition costs.
            ending: Token ids that end it too.
            sampling: None for the most likely token.
            seeds: Seed of each prompt if tokens are sampled.
            prompts: Token ids of each prompt if repetition costs something.
        """
        self.max_new_tokens = limits.max_new_tokens
        self.ending = ending
        self._penalty = limits.repetition_penalty
        self._prompts = prompts
        self._seen: dict[tuple[int, int], Tensor] = {}
        self.changes_logits = sampling is not None or self._penalty != 1
        self._sampling, self._seeds = sampling, seeds
        self._tokenizer, self._stop = tokenizer, limits.stop
        self._generators: dict[int, torch.Generator] = {}
        # A token is at least a byte; a few more, for a space that the decoder drops in front.
        self._num_newest = max((len(text.encode()) for text in limits.stop), default=0) + 4

    def next_tokens(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        """Token ids [copies, prompts] after logits [copies, prompts, vocabulary]."""
        if self.changes_logits:
            each = [self.changed(copy, prompts, number) for number, copy in enumerate(logits)]
            logits = torch.stack(each)
        return logits.argmax(dim=-1)

    def changed(self, logits: Tensor, prompts: Sequence[int], copy: int = 0) -> Tensor:
        """Logits whose largest is the next token, which counts as written, [prompts, vocabulary].

        Args:
            logits: Of the same shape.
            prompts: Index of each row's prompt.
            copy: Number of the copy.
        """
        if self._penalty == 1:
            return self._with_noise(logits, prompts)
        seen = [self._seen_after(prompt, copy, logits[0]) for prompt in prompts]
        logits = _penalized(logits.float(), torch.stack(seen), self._penalty)
        if self._sampling is not None:
            logits = self._with_noise(logits, prompts)
        for row, token in zip(seen, logits.argmax(dim=-1), strict=True):
            row[token] = True
        return logits

    def _seen_after(self, prompt: int, copy: int, like: Tensor) -> Tensor:
        """Whether each token was read or written, [vocabulary]."""
        if (prompt, copy) not in self._seen:
            seen = torch.zeros_like(like, dtype=torch.bool)
            seen[torch.tensor(self._prompts[prompt], device=like.device)] = True
            self._seen[prompt, copy] = seen
        return self._seen[prompt, copy]

    def _with_noise(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        """Logits whose largest is a sample, [prompts, vocabulary]."""
        assert self._sampling is not None
        scaled = _truncated(logits.float() / self._sampling.temperature, self._sampling)
        generators = [self._generator(prompt, logits.device) for prompt in prompts]
        noise = [
            torch.empty_like(row).exponential_(generator=generator).log_()
            for row, generator in zip(scaled, generators, strict=True)
        ]
        return scaled - torch.stack(noise)

    def _generator(self, prompt: int, device: torch.device) -> torch.Generator:
        if prompt not in self._generators:
            self._generators[prompt] = torch.Generator(device).manual_seed(self._seeds[prompt])
        return self._generators[prompt]

    def is_over(self, written: Sequence[int]) -> bool:
        """Whether the newest of the new tokens ends a completion."""
        if written[-1] in self.ending:
            return True
        if not self._stop:
            return False
        text = decoded(self._tokenizer, written[-self._num_newest :])
        return any(stop in text for stop in self._stop)


class WatchedChoice(TokenChoice):
    """A choice that tells of each new token of its one prompt."""

    def __init__(self, *settings: Any, on_tokens: Callable[[Sequence[int]], None]) -> None:
        """Set how tokens are chosen, as `TokenChoice`.

        Args:
            settings: Of `TokenChoice`.
            on_tokens: Called with the new tokens so far.
        """
        super().__init__(*settings)
        self._on_tokens = on_tokens

    @override
    def is_over(self, written: Sequence[int]) -> bool:
        self._on_tokens(written)
        return super().is_over(written)


def _penalized(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits in which a token that was seen is less likely, as CTRL divides them."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _truncated(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits with those outside `top_k` and `top_p` at minus infinity, [rows, vocabulary]."""
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        shares = ordered.softmax(dim=-1)
        # A token stays if those before it do not reach the share yet; the first always stays.
        is_out = shares.cumsum(dim=-1) - shares >= sampling.top_p
        is_out = torch.zeros_like(is_out).scatter(-1, order, is_out)
        logits = logits.masked_fill(is_out, -torch.inf)
    return logits
