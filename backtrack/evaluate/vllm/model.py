"""The engine's model as objectives see it: asked at one point, and at others along with it.

A batch is filled by asking the same prompts for the points that are expected next; what was
answered for them is kept until the model stands there and is asked the same.

Promised: one point's answers are the same tokens, seeds and likelihoods asked for alone or in
company, but for rounding. A sampled completion's seed is made of its prompt and its number.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from backtrack.evaluate.served import Served

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backtrack.evaluate.forward import Greedy, Scored
    from backtrack.evaluate.vllm.process import Adapter, Answer, Engine
    from backtrack.point import Point
    from backtrack.recipe import SamplingSection

MAX_KEPT_TOKENS = 20_000_000
"""Tokens of prompts and answers in one batch over all points; past it points are asked apart."""


class EngineModel(Served):
    """Where an engine stands, and what was asked there.

    Its context is a token shorter than the engine's: vLLM always writes one token more.
    """

    def __init__(
        self,
        engine: Engine,
        generation_config: Any,
        adapter_of: Callable[[Point], Adapter] | None,
        here: Point,
    ) -> None:
        """Ask at `here`.

        Args:
            engine: Running.
            generation_config: The model's own.
            adapter_of: The adapter that stands at a point; none where the engine's weights are
                replaced instead, so that one point is asked at a time.
            here: Where the model stands.
        """
        self._engine = engine
        self._adapter_of = adapter_of
        self._here = here
        self._expected: tuple[Point, ...] = ()
        self._kept: dict[tuple[Point, str], list[Answer]] = {}
        self.generation_config = generation_config
        self.context_tokens = engine.max_model_len - 1
        self.num_tokens = 0

    def expect(self, points: Sequence[Point]) -> None:
        """Say where the model will stand next, in any order."""
        self._expected = tuple(points) if self._adapter_of is not None else ()
        self._forget()

    def arrive(self, point: Point) -> None:
        """Say where the model stands."""
        self._here = point
        self._forget()

    def _forget(self) -> None:
        wanted = {self._here, *self._expected}
        self._kept = {key: answers for key, answers in self._kept.items() if key[0] in wanted}

    @property
    def wanted(self) -> tuple[Point, ...]:
        """The points that may be asked for: where the model stands, and those expected."""
        return tuple(dict.fromkeys([self._here, *self._expected]))

    def ask(self, prompts: Sequence[list[int]], params: Sequence[Any]) -> list[Answer]:
        """The engine's answers where the model stands.

        Args:
            prompts: Token ids.
            params: vLLM's `SamplingParams` of each.
        """
        key = hashlib.sha256(repr((list(prompts), list(map(repr, params)))).encode()).hexdigest()
        if (self._here, key) not in self._kept:
            self._ask_all(key, prompts, params)
        answers = self._kept[self._here, key]
        self.num_tokens += sum(answer.num_tokens for answer in answers)
        return answers

    def _ask_all(self, key: str, prompts: Sequence[list[int]], params: Sequence[Any]) -> None:
        most = sum(len(ids) + p.max_tokens for ids, p in zip(prompts, params, strict=True))
        room = max(MAX_KEPT_TOKENS // max(most, 1), 1)
        points = [p for p in self.wanted if (p, key) not in self._kept][:room]
        # Point by point, so that few adapters are in use at a time.
        adapters = [a for a in map(self._adapter, points) for _ in prompts]
        found = self._engine.generate(
            list(prompts) * len(points), list(params) * len(points), adapters
        )
        for index, point in enumerate(points):
            self._kept[point, key] = found[index * len(prompts) : (index + 1) * len(prompts)]

    def _adapter(self, point: Point) -> Adapter | None:
        return None if self._adapter_of is None else self._adapter_of(point)

    def losses(self, sequences: Sequence[Scored]) -> list[float]:
        answers = self.ask([s.ids for s in sequences], [scoring()] * len(sequences))
        return [
            -sum(answer.logprobs[sequence.first - 1 :])
            for answer, sequence in zip(answers, sequences, strict=True)
        ]

    def complete(
        self,
        prompts: Sequence[list[int]],
        ends: Greedy,
        ending: Sequence[int],
        sampling: SamplingSection | None,
    ) -> list[list[tuple[int, ...]]]:
        from vllm import SamplingParams

        fixed: dict[str, Any] = {
            "max_tokens": ends.max_new_tokens,
            "stop": list(ends.stop),
            "stop_token_ids": list(ending),
        }
        if sampling is None:
            greedy = SamplingParams(temperature=0, **fixed)
            answers = self.ask(prompts, [greedy] * len(prompts))
            return [[answer.token_ids] for answer in answers]
        numbers = range(sampling.samples)
        asked = [(ids, number) for ids in prompts for number in numbers]
        params = [SamplingParams(**fixed, **drawn(sampling, ids, n)) for ids, n in asked]
        answers = self.ask([ids for ids, _ in asked], params)
        made = [answer.token_ids for answer in answers]
        return [made[i : i + len(numbers)] for i in range(0, len(made), len(numbers))]


def scoring() -> Any:
    """Parameters of a request for a prompt's own likelihoods."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)


def drawn(sampling: SamplingSection, prompt: Sequence[int], number: int) -> dict[str, Any]:
    """What makes a request a sampled one, by its prompt and the sample's number."""
    text = f"{sampling.seed} {number} {list(prompt)}"
    seed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}
