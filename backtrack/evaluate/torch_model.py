"""A language model in this process, answered by transformers' forward pass.

Promised: what sequences share is read once where the model can (`shared_reading`); the same
sequences make the same batches at every call; a sampled completion depends on its prompt and seed,
not on its batch.
Not promised: the last bits when other sequences are asked for, since they make other batches.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from typing_extensions import override

from backtrack.errors import ObjectiveError
from backtrack.evaluate import plain_decoding
from backtrack.evaluate.language_model import LanguageModel
from backtrack.evaluate.shared_reading import memory
from backtrack.evaluate.shared_reading.decoding import completions, share_much
from backtrack.evaluate.shared_reading.divergence import BaseLogits, divergences
from backtrack.evaluate.shared_reading.scoring import likelihoods
from backtrack.evaluate.shared_reading.support import reads_trees
from backtrack.evaluate.token_choice import TokenChoice, WatchedChoice
from backtrack.point import Point

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from backtrack.evaluate.engine import PlacedModel
    from backtrack.evaluate.language_model import (
        CompletionLimits,
        Likelihood,
        Sampling,
        ScoredSequence,
    )
    from backtrack.evaluate.plain_decoding import Together
    from backtrack.evaluate.shared_reading.passes import Budget
    from backtrack.records import BatchSize

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a decoder gives for bytes that begin a character."""


def context_tokens(model: Any) -> int | None:
    """Tokens that a torch model reads at once; None if its configuration does not say."""
    config = model.config.get_text_config(decoder=True)
    limit: int | None = getattr(config, "max_position_embeddings", None)
    return limit


class TorchModel(LanguageModel):
    """A transformers or PEFT model, left in the mode it was in after every question."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_size: BatchSize,
        at_base: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        """Wrap a live model.

        Args:
            model: On its device; its weights may change between questions.
            tokenizer: Its tokenizer.
            batch_size: Sequences at a time; `auto` for as many as fit the memory that is free at
                the first question, and fewer from where it turns out not to suffice.
            at_base: Gives the run's model at the base, for divergences from it.
        """
        super().__init__(tokenizer, context_tokens(model), model.generation_config)
        self._model = model
        self._batch_size = batch_size
        self._base = BaseLogits(at_base) if at_base else None

    @property
    def max_scored_tokens(self) -> int | None:
        """One more than the context: the last token is scored and never read."""
        return None if self.context_tokens is None else self.context_tokens + 1

    @contextmanager
    def in_process(self) -> Iterator[Any]:
        """The torch model in evaluation and inference mode; its reads are counted.

        Raises:
            ObjectiveError: The device ran out of memory.
        """
        try:
            with self._counted() as model:
                yield model
        except torch.OutOfMemoryError as error:
            raise ObjectiveError(
                "the device ran out of memory. Lower `search.batch_size` in the recipe."
            ) from error

    @contextmanager
    def _counted(self) -> Iterator[Any]:
        hook = self._model.get_input_embeddings().register_forward_hook(self._count)
        try:
            with _evaluating(self._model):
                yield self._model
        finally:
            hook.remove()

    def _count(self, _module: Any, inputs: tuple[Tensor, ...], _output: Any) -> None:
        self.num_tokens += inputs[0].numel()

    @cached_property
    def reads_trees(self) -> bool:
        """Whether prefixes that sequences share are read once."""
        with _evaluating(self._model):
            return reads_trees(self._model)

    @cached_property
    def _together(self) -> Together:
        """Which prompts may be one batch if each is a row of its own."""
        if self.reads_trees:
            return "all"
        with _evaluating(self._model):
            return plain_decoding.rows_together(self._model)

    @cached_property
    def _measured(self) -> Budget:
        return memory.measured(self._model)

    def _answers(
        self,
        asked: Sequence[list[int]],
        answer: Callable[[Sequence[int], Budget], Iterator[tuple[int, Answer]]],
    ) -> list[Answer]:
        """Answers to all questions, in smaller batches from where the memory did not suffice.

        Args:
            asked: Token ids of each question.
            answer: Gives numbers and answers of the questions numbered.

        Raises:
            ObjectiveError: The device ran out of memory, and the batches cannot be smaller.
        """
        found: dict[int, Answer] = {}
        while len(found) < len(asked):
            waiting = [i for i in range(len(asked)) if i not in found]
            budget = self.budget(asked)
            try:
                with self._counted():
                    for index, given in answer(waiting, budget):
                        found[waiting[index]] = given
            except torch.OutOfMemoryError as error:
                self._shrink(error)
        return [found[index] for index in range(len(asked))]

    def budget(self, asked: Sequence[list[int]]) -> Budget:
        """How much is done at a time when sequences are asked for."""
        if self._batch_size == "auto":
            return self._measured
        return memory.fixed(self._batch_size, map(len, asked))

    def _shrink(self, error: torch.OutOfMemoryError) -> None:
        if self._batch_size != "auto":
            raise ObjectiveError(
                f"the device ran out of memory with {self._batch_size} sequences at a time. Lower "
                "`search.batch_size` in the recipe, or leave it out: it is then found by trying."
            ) from error
        smaller = self._measured.smaller
        if smaller is None:
            raise ObjectiveError(
                f"the device ran out of memory with one sequence, {self._measured.tokens} tokens "
                "at a time. Use a device with more memory, or a smaller dtype for the base."
            ) from error
        self._measured = smaller
        _log.warning("The device ran out of memory: going on with %d tokens a pass.", smaller[0])

    @override
    def _score(self, sequences: Sequence[ScoredSequence]) -> list[Likelihood]:
        is_shared = self.reads_trees

        def answer(waiting: Sequence[int], budget: Budget) -> Iterator[tuple[int, Likelihood]]:
            asked = [sequences[index] for index in waiting]
            return likelihoods(self._model, asked, budget, is_shared=is_shared)

        return self._answers([sequence.ids for sequence in sequences], answer)

    @override
    def divergences(self, prompts: Sequence[list[int]]) -> list[float]:
        base = self._base
        if base is None:
            raise ObjectiveError(
                "a divergence is measured on a run's path, where the base is at hand, and this "
                "model is by itself. Leave out the objectives of `kind: divergence`."
            )
        is_shared, limit = self.reads_trees, self.context_tokens
        asked = [ids if limit is None else ids[-limit:] for ids in prompts]

        def answer(waiting: Sequence[int], budget: Budget) -> Iterator[tuple[int, float]]:
            chosen = [asked[index] for index in waiting]
            return divergences(self._model, chosen, budget, base, is_shared=is_shared)

        return self._answers(asked, answer)

    @override
    def _continue(
        self,
        prompts: Sequence[list[int]],
        limits: CompletionLimits,
        ending: Sequence[int],
        sampling: Sampling | None,
        seeds: Sequence[int],
    ) -> list[Sequence[int]]:
        def choice(waiting: Sequence[int]) -> TokenChoice:
            own = [seeds[index] for index in waiting] if seeds else ()
            asked = [prompts[index] for index in waiting]
            return TokenChoice(self.tokenizer, limits, ending, sampling, own, asked)

        return [copies[0] for copies in self._written(prompts, choice)]

    def stream(
        self,
        prompt: list[int],
        limits: CompletionLimits,
        on_text: Callable[[str], None],
        sampling: Sampling | None = None,
    ) -> str:
        """Complete one prompt and give the text piece by piece while it is written.

        Args:
            prompt: Token ids, not empty.
            limits: Where the completion ends.
            on_text: Called with each piece; a character of several tokens is one piece.
            sampling: How to sample; None for the greedy completion.

        Returns:
            The whole text, as `complete` gives it.

        Raises:
            ObjectiveError: `max_new_tokens` leaves no room for the prompt, or memory ran out.
        """
        (ids,) = self._with_room([prompt], limits)
        ending = self._ending_tokens(limits.stop)
        shown = ""

        def show(written: Sequence[int]) -> None:
            nonlocal shown
            text = self._text(written, ending, limits.stop)
            if not text.endswith(_INCOMPLETE):
                on_text(text[len(shown) :])
                shown = text

        seeds = [sampling.seed_of(ids, 0)] if sampling else []
        choice = WatchedChoice(self.tokenizer, limits, ending, sampling, seeds, on_tokens=show)
        with self.in_process() as model:
            found = plain_decoding.completions(model, [ids], choice, self.budget([ids]))
            ((_, (written,)),) = found
        text = self._text(written, ending, limits.stop)
        on_text(text[len(shown) :])
        return text

    def _written(
        self,
        prompts: Sequence[list[int]],
        choice: Callable[[Sequence[int]], TokenChoice],
        copies: int = 1,
    ) -> list[list[list[int]]]:
        """New token ids of each prompt, by copy.

        Args:
            prompts: Token ids.
            choice: How tokens of the prompts of these indices are chosen.
            copies: How often each is completed; only models that read trees give more than one.
        """
        is_shared = self.reads_trees
        together = self._together

        def answer(
            waiting: Sequence[int], budget: Budget
        ) -> Iterator[tuple[int, list[list[int]]]]:
            asked = [prompts[index] for index in waiting]
            if is_shared and (copies > 1 or share_much(asked)):
                return completions(self._model, asked, choice(waiting), budget, copies)
            # NOTE: 16 prompts that share nothing take 1.3 times as long beside each other as in
            # rows of their own, since each step compares all with all.
            return plain_decoding.completions(
                self._model, asked, choice(waiting), budget,
                may_leave=is_shared, together=together,
            )  # fmt: skip

        return self._answers(prompts, answer)


@contextmanager
def at_base(placed: PlacedModel) -> Iterator[Any]:
    """The placed model at the base, in evaluation mode; it is where it was afterwards."""
    here = placed.point
    # Buffers that a placement makes outlive the visit, so they are not made in inference mode.
    with torch.inference_mode(mode=False):
        placed.place(Point.base())
    try:
        with _evaluating(placed.model):
            yield placed.model
    finally:
        with torch.inference_mode(mode=False):
            placed.place(here)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """A model in evaluation and inference mode, and as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True
