"""A language model in this process: transformers' forward pass and `generate`.

Promised: sequences are batched by length and then by the order given, so the same sequences make
the same batches at every call; padding is masked; sequences that differ in their last token only
are read once; a sampled completion depends on its prompt and seed, not on its batch.
Not promised: the last bits when other sequences are asked for, since they make other batches.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import log_softmax
from transformers import GenerationConfig

from backtrack.errors import ObjectiveError
from backtrack.evaluate.language_model import LanguageModel, Likelihood, decoded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from backtrack.evaluate.language_model import CompletionLimits, Sampling, ScoredSequence


def context_tokens(model: Any) -> int | None:
    """Tokens that a torch model reads at once; None if its configuration does not say."""
    config = model.config.get_text_config(decoder=True)
    limit: int | None = getattr(config, "max_position_embeddings", None)
    return limit


class TorchModel(LanguageModel):
    """A transformers or PEFT model, left in the mode it was in after every question.

    Attributes:
        batch_size: Sequences per forward pass.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        """Wrap a live model.

        Args:
            model: On its device; its weights may change between questions.
            tokenizer: Its tokenizer.
            batch_size: Sequences per forward pass.
        """
        super().__init__(tokenizer, context_tokens(model), model.generation_config)
        self._model = model
        self.batch_size = batch_size

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
        model = self._model
        training = [module for module in model.modules() if module.training]
        if training:
            model.eval()
        hook = model.get_input_embeddings().register_forward_hook(self._count)
        try:
            with torch.inference_mode():
                yield model
        except torch.OutOfMemoryError as error:
            raise ObjectiveError(
                "the device ran out of memory. Lower `search.batch_size` in the recipe."
            ) from error
        finally:
            hook.remove()
            for module in training:
                module.training = True

    def _count(self, _module: Any, inputs: tuple[Tensor, ...], _output: Any) -> None:
        self.num_tokens += inputs[0].numel()

    def _score(self, sequences: Sequence[ScoredSequence]) -> list[Likelihood]:
        # Sequences that share all but their last token share a forward pass.
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, sequence in enumerate(sequences):
            groups[tuple(sequence.ids[:-1])].append(index)
        inputs = list(groups)
        likelihoods = [Likelihood(0.0, is_greedy=False)] * len(sequences)
        for batch in _batches([len(ids) for ids in inputs], self.batch_size):
            rows = [inputs[i] for i in batch]
            members = [groups[row] for row in rows]
            scored = [[sequences[i] for i in indices] for indices in members]
            for indices, found in zip(members, self._score_batch(rows, scored), strict=True):
                for index, likelihood in zip(indices, found, strict=True):
                    likelihoods[index] = likelihood
        return likelihoods

    def _score_batch(
        self, rows: Sequence[Sequence[int]], scored: Sequence[Sequence[ScoredSequence]]
    ) -> list[list[Likelihood]]:
        """Likelihoods of the sequences that begin with each row."""
        with self.in_process() as model:
            ids, mask = _padded(rows, 0, model.device, is_left=False)
            logits = model(input_ids=ids, attention_mask=mask).logits
            # One row in fp32 at a time: a whole batch of a large vocabulary would not fit.
            return [
                _likelihoods(logits[i, : len(row)], sequences)
                for i, (row, sequences) in enumerate(zip(rows, scored, strict=True))
            ]

    def _continue(
        self,
        prompts: Sequence[list[int]],
        limits: CompletionLimits,
        ending: Sequence[int],
        sampling: Sampling | None,
        seeds: Sequence[int],
    ) -> list[Sequence[int]]:
        completions: list[Sequence[int]] = [()] * len(prompts)
        for batch in _batches([len(ids) for ids in prompts], self.batch_size):
            processors = None
            if sampling is not None:
                processors = [SeededSampling(sampling, [seeds[i] for i in batch])]
            written = self._generate([prompts[i] for i in batch], limits, ending, processors)
            for index, ids in zip(batch, written, strict=True):
                completions[index] = ids
        return completions

    def _generate(
        self,
        prompts: Sequence[list[int]],
        limits: CompletionLimits,
        ending: Sequence[int],
        processors: list[SeededSampling] | None,
    ) -> list[list[int]]:
        """New token ids after each prompt of one batch."""
        pad = self.tokenizer.pad_token_id
        if pad is None:
            pad = next(iter(ending), 0)
        with self.in_process() as model:
            ids, mask = _padded(prompts, pad, model.device, is_left=True)
            width = ids.shape[1]
            stop = [_StopTexts(self.tokenizer, limits.stop, width)] if limits.stop else None
            written: Tensor = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=_greedy(limits.max_new_tokens, ending, pad),
                logits_processor=processors,
                stopping_criteria=stop,
            )
        rows: list[list[int]] = written[:, width:].tolist()
        return rows


class SeededSampling:
    """Sampling inside a greedy search, with a generator for each row.

    Adding Gumbel noise to the logits and taking the largest draws from their softmax (the Gumbel
    maximum trick), so a row's tokens depend on its own seed and not on its batch.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        self._sampling = sampling
        self._seeds = seeds
        self._generators: list[torch.Generator] = []

    def __call__(self, _ids: Tensor, scores: Tensor) -> Tensor:
        """Noisy logits, of the shape of `scores`: [rows, vocabulary]."""
        if not self._generators:
            self._generators = [
                torch.Generator(scores.device).manual_seed(seed) for seed in self._seeds
            ]
        logits = _truncated(scores.float() / self._sampling.temperature, self._sampling)
        noise = torch.stack(
            [
                torch.empty_like(row).exponential_(generator=generator).log_()
                for row, generator in zip(logits, self._generators, strict=True)
            ]
        )
        return logits - noise


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


def _batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices, the longest sequences first, in groups of `batch_size`."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _likelihoods(logits: Tensor, sequences: Sequence[ScoredSequence]) -> list[Likelihood]:
    """Of sequences that begin with the tokens read; logits are [tokens read, vocabulary]."""
    start = min(sequence.first for sequence in sequences) - 1
    log_probabilities = log_softmax(logits[start:].float(), dim=-1)
    greedy = log_probabilities.argmax(dim=-1)
    found = []
    for sequence in sequences:
        tokens = torch.tensor(sequence.ids[sequence.first :], device=logits.device)
        at = slice(sequence.first - 1 - start, None)
        each = log_probabilities[at].gather(1, tokens[:, None])
        is_greedy = bool((greedy[at] == tokens).all())
        found.append(Likelihood(float(each.double().sum()), is_greedy))
    return found


def _padded(
    rows: Sequence[Sequence[int]], pad: int, device: Any, *, is_left: bool
) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [rows, longest row]."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        columns = slice(width - len(row), width) if is_left else slice(0, len(row))
        ids[index, columns] = torch.tensor(row, dtype=torch.long)
        mask[index, columns] = 1
    return ids.to(device), mask.to(device)


def _greedy(max_new_tokens: int, ending: Sequence[int], pad: int) -> Any:
    """Plain greedy search.

    `generate` takes what is left out from the model's own `generation_config.json`, which often
    holds a temperature or a repetition penalty; so each of them is set here.
    """
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ending) or None,
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


class _StopTexts:
    """Says which rows have written a stop text; only the newest tokens are decoded."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], width: int) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._width = width
        # A token is at least a byte; a few more, for a space that the decoder drops in front.
        self._num_newest = max(len(text.encode()) for text in stop) + 4

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        start = max(self._width, input_ids.shape[1] - self._num_newest)
        ends = [decoded(self._tokenizer, row) for row in input_ids[:, start:].tolist()]
        is_done = [any(text in end for text in self._stop) for end in ends]
        return torch.tensor(is_done, device=input_ids.device, dtype=torch.bool)
