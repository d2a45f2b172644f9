"""The one interface between objectives and whatever answers them.

An objective asks a `LanguageModel` how likely a text is, how a prompt goes on, and, of a model in
this process, how far its next-token probabilities are from the base's. It cannot tell a model in
this process from one behind an engine. A model in this process, one that decodes several strengths
of an adapter at once, and one served by vLLM differ only in how they answer `_score` and
`_continue`, both on token ids.

Promised: texts are cut, ended and decoded by the same code whatever answers.
Not promised: the last bits. Engines, devices and batch shapes round matrix products differently.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from backtrack.errors import ObjectiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from backtrack.records.answers import Answer


class ScoredSequence(NamedTuple):
    """Token ids of which those from `first` on are scored; those before are only read."""

    ids: list[int]
    first: int

    @property
    def num_scored(self) -> int:
        """Number of tokens that are scored."""
        return len(self.ids) - self.first


class Likelihood(NamedTuple):
    """How likely the scored tokens of a sequence are.

    Attributes:
        log_likelihood: Sum over the scored tokens, in nats.
        is_greedy: Whether each scored token is the most likely one at its position.
    """

    log_likelihood: float
    is_greedy: bool


class CompletionLimits(NamedTuple):
    """Where a completion ends, and what it may repeat.

    Attributes:
        max_new_tokens: It ends after so many tokens.
        stop: It ends before the first of these texts.
        repetition_penalty: Logits of tokens that were read or written are divided by it, or
            multiplied where they are negative (CTRL); 1 changes nothing.
    """

    max_new_tokens: int
    stop: tuple[str, ...]
    repetition_penalty: float = 1.0


class Sampling(NamedTuple):
    """How completions are sampled.

    Attributes:
        samples: Completions per prompt.
        temperature: The logits are divided by it; above 0.
        top_p: Smallest share of probability, most likely tokens first, that is sampled from.
        top_k: Number of most likely tokens that are sampled from; 0 for all.
        seed: With the prompt and the number of the sample, the seed of a completion.
    """

    samples: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def seed_of(self, prompt: Sequence[int], number: int) -> int:
        """The seed of one completion, below 2**32, whatever else is in its batch."""
        text = f"{self.seed} {number} {list(prompt)}"
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


class LanguageModel(ABC):
    """A causal language model that objectives ask.

    Attributes:
        tokenizer: The model's tokenizer.
        context_tokens: Tokens that can be read and scored at once; None if there is no known
            limit.
        num_tokens: Tokens read and written so far, padding included where there is some.
    """

    def __init__(
        self, tokenizer: Any, context_tokens: int | None, generation_config: Any = None
    ) -> None:
        """Set what all implementations share.

        Args:
            tokenizer: The model's tokenizer.
            context_tokens: See the class.
            generation_config: The model's own; its EOS tokens end a completion.
        """
        self.tokenizer = tokenizer
        self.context_tokens = context_tokens
        self.num_tokens = 0
        self._generation_config = generation_config
        self._noted: dict[str, Answer] | None = None

    @contextmanager
    def noting(self) -> Iterator[dict[str, Answer]]:
        """Collect what objectives note inside the context, by item."""
        self._noted = {}
        try:
            yield self._noted
        finally:
            self._noted = None

    def note(self, item_id: str, answer: Answer) -> None:
        """Note what was said to an item; an objective that is asked to measure calls this."""
        if self._noted is not None:
            self._noted[item_id] = answer

    @property
    def max_scored_tokens(self) -> int | None:
        """Length of the longest sequence that can be scored whole; None if there is no limit."""
        return self.context_tokens

    @abstractmethod
    def _score(self, sequences: Sequence[ScoredSequence]) -> list[Likelihood]:
        """Answer `score` for sequences that fit the context."""

    @abstractmethod
    def _continue(
        self,
        prompts: Sequence[list[int]],
        limits: CompletionLimits,
        ending: Sequence[int],
        sampling: Sampling | None,
        seeds: Sequence[int],
    ) -> list[Sequence[int]]:
        """Write one completion of each prompt, in new token ids.

        Args:
            prompts: Token ids, none empty, that leave room for the completion. A prompt that is
                sampled several times is there as often.
            limits: Where a completion ends.
            ending: Token ids that end a completion.
            sampling: How to sample; None for greedy decoding.
            seeds: Seed of each completion; empty for greedy decoding.

        Returns:
            Token ids of each completion. Tokens after an ending one or after a stop text may be
            there; they are cut off.
        """

    def in_process(self) -> AbstractContextManager[Any]:
        """The torch model in evaluation mode, for functions that call it themselves.

        Raises:
            ObjectiveError: The model does not run in this process.
        """
        raise ObjectiveError(
            "the function needs a torch model in this process, and an engine answers here. "
            "Measure with `engine: transformers`."
        )

    def divergences(self, prompts: Sequence[list[int]]) -> list[float]:  # noqa: ARG002
        """KL(base || model) over the whole vocabulary, mean over a prompt's positions, in nats.

        Args:
            prompts: Token ids, none empty; one that is longer than the context loses tokens from
                its left. The token after each of them counts, that after the last too.

        Raises:
            ObjectiveError: What answers does not give whole distributions.
        """
        raise ObjectiveError(
            "a divergence compares all next-token probabilities with the base's, and this engine "
            "gives those of a few tokens. Measure with `engine: transformers`."
        )

    def score(self, sequences: Sequence[ScoredSequence]) -> list[Likelihood]:
        """How likely the scored tokens of each sequence are.

        A sequence longer than `max_scored_tokens` loses tokens from its left, read ones before
        scored ones; one token is always read.
        """
        return self._score([self.fitting(sequence) for sequence in sequences])

    def fitting(self, sequence: ScoredSequence) -> ScoredSequence:
        """The sequence as `score` reads it, cut from the left."""
        limit = self.max_scored_tokens
        excess = 0 if limit is None else max(0, len(sequence.ids) - limit)
        return ScoredSequence(sequence.ids[excess:], max(sequence.first - excess, 1))

    def complete(
        self,
        prompts: Sequence[list[int]],
        limits: CompletionLimits,
        sampling: Sampling | None = None,
    ) -> list[list[str]]:
        """Completions of each prompt as text, cut before the first stop text.

        A prompt that leaves no room for `max_new_tokens` in the context is cut from its left. The
        model's own sampling settings and penalties do not count.

        Args:
            prompts: Token ids, none empty.
            limits: Where a completion ends.
            sampling: How to sample; None for one greedy completion.

        Raises:
            ObjectiveError: `max_new_tokens` leaves no room for any prompt.
        """
        ending = self._ending_tokens(limits.stop)
        completions = self._complete(self._with_room(prompts, limits), limits, ending, sampling)
        return [[self._text(ids, ending, limits.stop) for ids in each] for each in completions]

    def _complete(
        self,
        prompts: Sequence[list[int]],
        limits: CompletionLimits,
        ending: Sequence[int],
        sampling: Sampling | None,
    ) -> list[list[Sequence[int]]]:
        """Token ids of the completions of each prompt: one if greedy, else all samples."""
        each = sampling.samples if sampling else 1
        repeated = [ids for ids in prompts for _ in range(each)]
        seeds = (
            [sampling.seed_of(ids, n) for ids in prompts for n in range(each)] if sampling else []
        )
        written = self._continue(repeated, limits, ending, sampling, seeds)
        return [written[start : start + each] for start in range(0, len(written), each)]

    def _with_room(
        self, prompts: Sequence[list[int]], limits: CompletionLimits
    ) -> list[list[int]]:
        limit = self.context_tokens
        room = None if limit is None else limit - limits.max_new_tokens
        if room is not None and room < 1:
            raise ObjectiveError(
                f"{limits.max_new_tokens} new tokens leave no room for a prompt in the model's "
                f"context of {limit} tokens. Lower `max_new_tokens` (`max_gen_toks` for lm-eval)."
            )
        return [ids if room is None else ids[-room:] for ids in prompts]

    def _ending_tokens(self, stop: Sequence[str]) -> list[int]:
        """Tokens that end a completion, ascending.

        They are the EOS tokens of the model's generation config and of the tokenizer, and stop
        texts that are special tokens, which no decoded text ever shows.
        """
        of_model = getattr(self._generation_config, "eos_token_id", None)
        listed = of_model if isinstance(of_model, list) else [of_model]
        of_texts = [token for token, text in self._special_tokens().items() if text in stop]
        every = {*listed, *of_texts, self.tokenizer.eos_token_id}
        return sorted(token for token in every if token is not None)

    def _special_tokens(self) -> dict[int, str]:
        added = self.tokenizer.added_tokens_decoder
        return {token: each.content for token, each in added.items() if each.special}

    def _text(self, ids: Sequence[int], ending: Sequence[int], stop: Iterable[str]) -> str:
        end = next((index for index, token in enumerate(ids) if token in ending), len(ids))
        text = decoded(self.tokenizer, ids[:end])
        return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, without special tokens and otherwise unchanged."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
