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
        is_sampled: Whether tokens are sampled.
    """

    def __init__(
        self,
        tokenizer: Any,
        limits: CompletionLimits,
        ending: Sequence[int],
        sampling: Sampling | None = None,
        seeds: Sequence[int] = (),
    ) -> None:
        """Set how tokens are chosen.

        Args:
            tokenizer: Decodes what may hold a stop text.
            limits: Where a completion ends.
            ending: Token ids that end it too.
            sampling: None for the most likely token.
            seeds: Seed of each prompt if tokens are sampled.
        """
        self.max_new_tokens = limits.max_new_tokens
        self.ending = ending
        self.is_sampled = sampling is not None
        self._sampling, self._seeds = sampling, seeds
        self._tokenizer, self._stop = tokenizer, limits.stop
        self._generators: dict[int, torch.Generator] = {}
        # A token is at least a byte; a few more, for a space that the decoder drops in front.
        self._num_newest = max((len(text.encode()) for text in limits.stop), default=0) + 4

    def next_tokens(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        """Token ids [copies, prompts] after logits [copies, prompts, vocabulary]."""
        if self.is_sampled:
            logits = torch.stack([self.with_noise(copy, prompts) for copy in logits])
        return logits.argmax(dim=-1)

    def with_noise(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        """Logits whose largest is a sample, [prompts, vocabulary].

        Args:
            logits: Of the same shape.
            prompts: Index of each row's prompt.
        """
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
