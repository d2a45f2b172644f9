"""Own one placed model, or one engine, and the objectives; answer requests about them.

A measurer knows nothing of a search: it is asked for the scores of some items of one objective at
one point, and answers with a measurement. It writes nothing into the run, so that any number of
them may measure one run, each in a process of its own (see `executor` and `ray_executor`). The
engine is started and the objectives are built when they are first needed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backtrack.errors import UsageError
from backtrack.evaluate.engine import Engine
from backtrack.evaluate.measure import measure
from backtrack.selection.measure.contamination import find_shared, training_data

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.path.placement import Placement
    from backtrack.point import Point
    from backtrack.recipe import Recipe
    from backtrack.records import CurveName, Form, Measurement, ObjectiveInfo, Split
    from backtrack.records.answers import Answer, Question
    from backtrack.records.selection import Baseline
    from backtrack.run.directory import Run
    from backtrack.selection.measure.contamination import SharedItems


@dataclass(frozen=True)
class Request:
    """Items of one objective at one point.

    Attributes:
        point: The point, canonical.
        objective: Name of the objective.
        item_ids: Which items.
        split: What the items are for.
        origin: What asked for the point; see `Measurement`.
        setting: What the setting names the objective by; see `Measurement`.
        checkpoint: Digest of the point's checkpoint; empty at the base.
    """

    point: Point
    objective: str
    item_ids: tuple[str, ...]
    split: Split
    origin: str
    setting: str
    checkpoint: str


@dataclass(frozen=True)
class Measured:
    """The answer to a request: a measurement, and what the model said by item."""

    request: Request
    measurement: Measurement
    answers: Mapping[str, Answer]


@dataclass(frozen=True)
class ObjectiveFacts:
    """What is known of an objective once it is built.

    Attributes:
        info: Its identity.
        item_ids: All its items.
        clusters: Cluster by item, of the items that share something.
        lent: Objective and item that each item is taken from, by item; empty for its own.
        shared_field: The field that its items share unnoticed; None if there is none.
    """

    info: ObjectiveInfo
    item_ids: tuple[str, ...]
    clusters: Mapping[str, str] = field(default_factory=dict)
    lent: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    shared_field: str | None = None


@dataclass(frozen=True)
class Facts:
    """What a search must know of a measurer.

    Attributes:
        form: How the weights are held.
        curve: The curve on which points lie.
        objectives: The objectives, in the recipe's order.
    """

    form: Form
    curve: CurveName
    objectives: tuple[ObjectiveFacts, ...]


class Measurer:
    """Answers requests by an engine and objectives of its own."""

    def __init__(
        self,
        run: Run,
        recipe: Recipe | None,
        engine: Engine | Placement | None = None,
        objectives: Sequence[Objective] | None = None,
    ) -> None:
        """Take what is given; start and build nothing but an engine around a given placement.

        Args:
            run: A run with at least one checkpoint.
            recipe: What to measure, and by which engine.
            engine: A started engine, or the live model; if None, an engine is started when needed.
            objectives: Built objectives, in place of the recipe's.

        Raises:
            UsageError: A live model is given and the recipe's engine loads its own.
        """
        self._run = run
        self._recipe = recipe
        self._engine: Engine | None = None
        if isinstance(engine, Engine):
            self._engine = engine
        elif engine is not None:
            self._engine = self._start(engine)
        self._objectives = None if objectives is None else tuple(objectives)
        self._placed_at: Point | None = None

    @property
    def is_built(self) -> bool:
        return self._engine is not None and self._objectives is not None

    @property
    def form_and_curve(self) -> tuple[Form, CurveName] | None:
        """Form and curve of the engine; None before one is started."""
        return None if self._engine is None else (self._engine.form, self._engine.curve)

    @property
    def engine(self) -> Engine:
        """The engine, started at the first call."""
        if self._engine is None:
            self._engine = self._start(None)
        return self._engine

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives, built at the first call."""
        if self._objectives is None:
            from backtrack.evaluate.build import build_objectives

            if self._recipe is None:
                raise UsageError(NO_OBJECTIVES.format(path=self._run.path))
            self._objectives = build_objectives(self._recipe, self.engine.tokenizer)
        return self._objectives

    def facts(self) -> Facts:
        """What a search must know of it; starts the engine and builds the objectives."""
        return Facts(
            self.engine.form,
            self.engine.curve,
            tuple(
                ObjectiveFacts(
                    o.info, tuple(o.item_ids), dict(o.clusters), dict(o.lent), o.shared_field
                )
                for o in self.objectives
            ),
        )

    def expect(self, points: Sequence[Point]) -> None:
        """Announce the next points, for an engine that answers several at once."""
        self.engine.expect(points)

    def measure(self, request: Request) -> Measured:
        """Answer a request.

        Raises:
            ObjectiveError: The items cannot be scored, or a score is missing or not finite.
        """
        self._place(request.point)
        with self.engine.noting() as answers:
            measurement = measure(
                self._objective(request.objective),
                self.engine,
                request.item_ids,
                split=request.split,
                origin=request.origin,
                setting=request.setting,
                checkpoint=request.checkpoint,
            )
        return Measured(request, measurement, dict(answers))

    def score_baseline(
        self, baseline: Baseline, item_ids: Mapping[str, tuple[str, ...]]
    ) -> dict[str, tuple[tuple[float, ...], float]]:
        """Score a baseline that is no point.

        Args:
            baseline: The baseline.
            item_ids: Which items, by the objectives' names.

        Returns:
            By objective's name, its scores as it gave them and the seconds it took.

        Raises:
            UsageError: The baseline cannot be made from this run.
            ObjectiveError: The engine answers at points only.
        """
        from backtrack.selection.measurers.baseline_models import make_baseline_model

        model = self.engine.asked(make_baseline_model(self._run, self.engine.placed, baseline))
        found: dict[str, tuple[tuple[float, ...], float]] = {}
        for name, ids in item_ids.items():
            begin = time.perf_counter()
            scores = tuple(self._objective(name).measure(model, ids))
            found[name] = scores, time.perf_counter() - begin
        return found

    def questions(self, name: str) -> dict[str, Question]:
        """What the items of an objective ask, by item; empty if it does not say."""
        objective = self._objective(name)
        return dict(zip(objective.item_ids, objective.questions(), strict=False))

    def prompts(self, name: str) -> dict[str, str]:
        """The items of an objective as the model reads them, by item."""
        objective = self._objective(name)
        return dict(zip(objective.item_ids, objective.prompts(), strict=False))

    def shared_items(self) -> SharedItems:
        """The items that are shared with what the run was trained on."""
        return find_shared(training_data(self._run, self._recipe), self.objectives)

    def _place(self, point: Point) -> None:
        if self._placed_at != point:
            self._placed_at = None
            self.engine.place(point)
            self._placed_at = point

    def _objective(self, name: str) -> Objective:
        return next(o for o in self.objectives if o.info.name == name)

    def _start(self, placed: Placement | None) -> Engine:
        from backtrack.selection.measurers.engines import start_engine

        return start_engine(self._run, self._recipe, placed)


NO_OBJECTIVES = (
    "{path}: nothing says what to measure. Give a recipe with --recipe FILE, or add "
    "`objectives:` to the run's recipe: at least one with `role: target` and one with "
    "`role: general`."
)
