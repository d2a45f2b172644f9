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

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from backtrack.evaluate.answers_ahead import AnswersAhead
from backtrack.evaluate.engine import Engine
from backtrack.evaluate.torch_model import TorchModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.evaluate.engine import PlacedModel, RowStrengths, RunFacts
    from backtrack.evaluate.language_model import CompletionLimits, LanguageModel
    from backtrack.evaluate.torch_model import SeededSampling
    from backtrack.point import Point


class TransformersEngine(Engine):
    """A placement whose model is asked directly."""

    def __init__(self, placed: PlacedModel, _settings: Any, run: RunFacts) -> None:
        self.placed = placed
        self._batch_size = run.batch_size
        self.tokenizer, self.form, self.curve = placed.tokenizer, placed.form, placed.curve
        self.point = placed.point
        strengths = placed.row_strengths
        self._shared = None
        if strengths is not None:
            self._shared = SharedStrengthsModel(placed, strengths, run.batch_size)
        self.language_model = self._shared or self.asked(placed.model)

    @override
    def place(self, point: Point) -> None:
        self.placed.place(point)
        self.point = self.placed.point
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
        return TorchModel(model, self.tokenizer, self._batch_size)


class SharedStrengthsModel(TorchModel):
    """Decodes each batch at several strengths of one LoRA.

    Attributes:
        answers: Token ids of the batches decoded so far, by point.
    """

    def __init__(self, placed: PlacedModel, strengths: RowStrengths, batch_size: int) -> None:
        super().__init__(placed.model, placed.tokenizer, batch_size)
        self._strengths = strengths
        self.answers: AnswersAhead[list[list[int]]] = AnswersAhead(placed.point)

    @override
    def _generate(
        self,
        prompts: Sequence[list[int]],
        limits: CompletionLimits,
        ending: Sequence[int],
        processors: list[SeededSampling] | None,
    ) -> list[list[int]]:
        if processors is not None:
            return super()._generate(prompts, limits, ending, processors)
        request = (tuple(map(tuple, prompts)), limits, tuple(ending))
        if not self.answers.has(self.answers.point, request):
            self._decode(request, prompts, limits, ending)
        return self.answers.here(request)

    def _decode(
        self,
        request: tuple[object, ...],
        prompts: Sequence[list[int]],
        limits: CompletionLimits,
        ending: Sequence[int],
    ) -> None:
        """Decode a batch at the current point and at as many others as there is room for."""
        here, *others = self.answers.points
        num_others = max(self._strengths.max_rows // len(prompts) - 1, 0)
        points = (here, *self._strengths.shared(here, others)[:num_others])
        if len(points) == 1:
            rows = super()._generate(prompts, limits, ending, None)
        else:
            with self._strengths.by_row(points, len(prompts)):
                rows = super()._generate(list(prompts) * len(points), limits, ending, None)
        for index, point in enumerate(points):
            start = index * len(prompts)
            self.answers.keep(point, request, rows[start : start + len(prompts)])
