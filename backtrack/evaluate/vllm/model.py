"""vLLM's model as objectives see it: asked at one point, and at expected ones along with it.

Promised: one point's answers are the same tokens, seeds and likelihoods asked for alone or
together with others, but for rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from backtrack.evaluate.answers_ahead import AnswersAhead
from backtrack.evaluate.language_model import LanguageModel, Likelihood

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backtrack.evaluate.language_model import CompletionLimits, Sampling, ScoredSequence
    from backtrack.evaluate.vllm.process import Adapter, Answer, VllmProcess
    from backtrack.point import Point

MAX_KEPT_TOKENS = 20_000_000
"""Tokens of prompts and answers in one batch over all points; past it points are asked apart."""


class VllmModel(LanguageModel):
    """A running vLLM engine at a point.

    Its context is a token shorter than the engine's: vLLM always writes one token more.

    Attributes:
        answers: The engine's answers so far, by point.
    """

    def __init__(
        self,
        process: VllmProcess,
        tokenizer: Any,
        generation_config: Any,
        adapter_of: Callable[[Point], Adapter] | None,
        point: Point,
    ) -> None:
        """Ask a running engine.

        Args:
            process: The engine.
            tokenizer: The run's tokenizer.
            generation_config: The model's own.
            adapter_of: The adapter of a point; None if the engine's weights are replaced instead,
                so that one point is asked at a time.
            point: Where the engine is.
        """
        super().__init__(tokenizer, process.max_model_len - 1, generation_config)
        self._process = process
        self._adapter_of = adapter_of
        self.answers: AnswersAhead[list[Answer]] = AnswersAhead(point)

    def expect(self, points: Sequence[Point]) -> None:
        """Set the points that come next, in any order; only adapters can be asked ahead."""
        self.answers.expect(points if self._adapter_of is not None else ())

    def ask(self, prompts: Sequence[list[int]], params: Sequence[Any]) -> list[Answer]:
        """The engine's answers at the current point.

        Args:
            prompts: Token ids.
            params: vLLM's `SamplingParams` of each prompt.
        """
        request = (tuple(map(tuple, prompts)), tuple(map(repr, params)))
        if not self.answers.has(self.answers.point, request):
            self._ask_everywhere(request, prompts, params)
        answers = self.answers.here(request)
        self.num_tokens += sum(answer.num_tokens for answer in answers)
        return answers

    def _ask_everywhere(
        self, request: tuple[object, ...], prompts: Sequence[list[int]], params: Sequence[Any]
    ) -> None:
        most = sum(len(ids) + p.max_tokens for ids, p in zip(prompts, params, strict=True))
        num_points = max(MAX_KEPT_TOKENS // max(most, 1), 1)
        asked = [p for p in self.answers.points if not self.answers.has(p, request)]
        points = asked[:num_points]
        # Point by point, so that few adapters are in use at a time.
        adapters = [adapter for adapter in map(self._adapter, points) for _ in prompts]
        answers = self._process.generate(
            list(prompts) * len(points), list(params) * len(points), adapters
        )
        for index, point in enumerate(points):
            start = index * len(prompts)
            self.answers.keep(point, request, answers[start : start + len(prompts)])

    def _adapter(self, point: Point) -> Adapter | None:
        return None if self._adapter_of is None else self._adapter_of(point)

    @override
    def _score(self, sequences: Sequence[ScoredSequence]) -> list[Likelihood]:
        answers = self.ask([s.ids for s in sequences], [scoring()] * len(sequences))
        return [
            Likelihood(
                sum(answer.logprobs[sequence.first - 1 :]),
                all(answer.is_top[sequence.first - 1 :]),
            )
            for answer, sequence in zip(answers, sequences, strict=True)
        ]

    @override
    def _continue(
        self,
        prompts: Sequence[list[int]],
        limits: CompletionLimits,
        ending: Sequence[int],
        sampling: Sampling | None,
        seeds: Sequence[int],
    ) -> list[Sequence[int]]:
        params = [_sampling_params(limits, ending)] * len(prompts)
        if sampling is not None:
            params = [_sampling_params(limits, ending, sampling, seed) for seed in seeds]
        return [answer.token_ids for answer in self.ask(prompts, params)]


def scoring() -> Any:
    """`SamplingParams` of a request for a prompt's own likelihoods."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)


def _sampling_params(
    limits: CompletionLimits,
    ending: Sequence[int],
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Any:
    """`SamplingParams` of one completion."""
    from vllm import SamplingParams

    fields: dict[str, Any] = {"temperature": 0}
    if sampling is not None:
        fields = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": seed,
        }
    return SamplingParams(
        max_tokens=limits.max_new_tokens,
        stop=list(limits.stop),
        stop_token_ids=list(ending),
        repetition_penalty=limits.repetition_penalty,
        **fields,
    )
