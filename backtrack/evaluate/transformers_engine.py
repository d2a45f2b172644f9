"""The engine in this process: the placed model answers by itself.

A plain LoRA decodes for several points at once. A decoding step of a small batch costs the same
for one row as for several, so the same prompts are decoded along at the strengths that come next
(six strengths at batch 1: 68 ms one after the other, 16 ms together).

Promised: the same greedy search at every point; what is decoded along differs from what is decoded
alone by rounding only.
Not promised: sampled completions, and batches past `RowStrengths.max_rows`, where arithmetic is
the bound and sharing gains nothing, are decoded alone.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from backtrack.evaluate.answers_ahead import AnswersAhead
from backtrack.evaluate.engine import Engine
from backtrack.evaluate.token_choice import TokenChoice
from backtrack.evaluate.torch_model import TorchModel, at_base

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backtrack.evaluate.engine import PlacedModel, RowStrengths, RunFacts
    from backtrack.evaluate.language_model import CompletionLimits, LanguageModel, Sampling
    from backtrack.point import Point
    from backtrack.records import BatchSize


class TransformersEngine(Engine):
    """A placement whose model is asked directly."""

    def __init__(self, placed: PlacedModel, _settings: Any, run: RunFacts) -> None:
        self.placed = placed
        self._batch_size = run.batch_size
        self.tokenizer, self.form, self.curve = placed.tokenizer, placed.form, placed.curve
        strengths = placed.row_strengths
        self._shared = None
        if strengths is not None:
            self._shared = SharedStrengthsModel(placed, strengths, run.batch_size)
        self.language_model = self._shared or self.asked(placed.model)

    @property
    @override
    def point(self) -> Point:
        return self.placed.point

    @override
    def place(self, point: Point) -> None:
        self.placed.place(point)
        if self._shared is not None:
            self._shared.answers.arrive(self.point)

    @override
    def expect(self, points: Sequence[Point]) -> None:
        if self._shared is not None:
            self._shared.answers.expect([point.canonical for point in points])

    @override
    def distance(self, point: Point) -> float:
        return self.placed.distance(point)

    @override
    def asked(self, model: Any) -> LanguageModel:
        visit = partial(at_base, self.placed)
        return TorchModel(model, self.tokenizer, self._batch_size, visit)


class SharedStrengthsModel(TorchModel):
    """Completes prompts at several strengths of one LoRA.

    Attributes:
        answers: Token ids of the completions so far, by point.
    """

    def __init__(
        self, placed: PlacedModel, strengths: RowStrengths, batch_size: BatchSize
    ) -> None:
        super().__init__(placed.model, placed.tokenizer, batch_size, partial(at_base, placed))
        self._strengths = strengths
        self.answers: AnswersAhead[list[Sequence[int]]] = AnswersAhead(placed.point)

    @override
    def _continue(
        self,
        prompts: Sequence[list[int]],
        limits: CompletionLimits,
        ending: Sequence[int],
        sampling: Sampling | None,
        seeds: Sequence[int],
    ) -> list[Sequence[int]]:
        if sampling is not None or not self.reads_trees:
            return super()._continue(prompts, limits, ending, sampling, seeds)
        request = (tuple(map(tuple, prompts)), limits, tuple(ending))
        if not self.answers.has(self.answers.point, request):

            def choice(waiting: Sequence[int]) -> TokenChoice:
                asked = [prompts[index] for index in waiting]
                return TokenChoice(self.tokenizer, limits, ending, prompts=asked)

            self._decode(request, prompts, choice)
        return self.answers.here(request)

    def _decode(
        self,
        request: tuple[object, ...],
        prompts: Sequence[list[int]],
        choice: Callable[[Sequence[int]], TokenChoice],
    ) -> None:
        """Complete prompts at the current point and at as many others as there is room for."""
        here, *others = self.answers.points
        num_rows = min(len(prompts), self.budget(prompts).rows)
        num_others = max(self._strengths.max_rows // max(num_rows, 1) - 1, 0)
        points = (here, *self._strengths.shared(here, others)[:num_others])
        with self._strengths.by_row(points) if len(points) > 1 else nullcontext():
            written = self._written(prompts, choice, len(points))
        for index, point in enumerate(points):
            self.answers.keep(point, request, [copies[index] for copies in written])
