"""Models as sides of a gate: points of a run, and models of their own. Scores are measured.

A point is measured as a search measures it, by the run's recipe, engine and report items, and what
is measured is recorded in the run; what is recorded already is not measured again. Any other model
is loaded by transformers and asked by the same objectives; its scores are not kept.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from backtrack.errors import UsageError
from backtrack.evaluate.measure import require_scores
from backtrack.gate.sides import ItemScores, RecordedScores, Side
from backtrack.records import BaseModelReference
from backtrack.selection.measure.items import Items

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from backtrack.evaluate.language_model import LanguageModel
    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.point import Point
    from backtrack.recipe import Recipe
    from backtrack.selection.measure.evaluator import Evaluator
    from backtrack.selection.measurers.measurer import ObjectiveFacts


class _ObjectiveScores(ItemScores):
    """An objective that is measured when scores are asked for; abstract."""

    is_recorded = False

    def __init__(self, objective: Objective | ObjectiveFacts, item_ids: tuple[str, ...]) -> None:
        self.info = objective.info
        self.item_ids = item_ids
        self.possible = frozenset(objective.item_ids)
        self.clusters = objective.clusters


class PointSide(Side):
    """A point of a run."""

    def __init__(self, evaluator: Evaluator, point: Point) -> None:
        """Take a point; no model is loaded where all its report items are recorded.

        Args:
            evaluator: Of the run; points of one run share it, and the model with it.
            point: The point.
        """
        self.evaluator = evaluator
        self.point = point.canonical
        self.name = f"{evaluator.run.path} at {self.point}"

    @cached_property
    @override
    def objectives(self) -> Mapping[str, ItemScores]:
        return self._recorded or {
            objective.info.name: _PointScores(self, objective, item_ids)
            for objective in self.evaluator.facts.objectives
            for item_ids in [self.evaluator.setting("report").item_ids[objective.info.name]]
        }

    @property
    def _recorded(self) -> dict[str, ItemScores]:
        """The scores by objective if all report items are recorded, else nothing."""
        setting = self.evaluator.find_setting("report")
        table = None if setting is None else self.evaluator.table(setting)
        if setting is None or table is None or not table.holds([self.point]):
            return {}
        row = table.column(self.point)
        return {
            info.name: RecordedScores(
                info,
                dict(zip(setting.item_ids[info.name], scores[row].tolist(), strict=True)),
                clusters=setting.clusters.get(info.name, {}),
            )
            for info in setting.objectives
            for scores in [table.scores[info.name]]
        }


class _PointScores(_ObjectiveScores):
    """An objective at a point of a run."""

    def __init__(
        self, side: PointSide, objective: ObjectiveFacts, item_ids: tuple[str, ...]
    ) -> None:
        super().__init__(objective, item_ids)
        self.info = next(
            info
            for info in side.evaluator.setting("report").objectives
            if info.name == objective.info.name
        )
        self._side = side

    @override
    def expect(self, item_ids: Sequence[str]) -> None:
        known = self._recorded()
        if missing := [item_id for item_id in item_ids if item_id not in known]:
            side, name = self._side, self.info.name
            side.evaluator.expect_items(side.point, name, missing, "report", "gate")

    @override
    def scores(self, item_ids: Sequence[str]) -> tuple[float, ...]:
        known = self._recorded()
        missing = [item_id for item_id in item_ids if item_id not in known]
        if missing:
            side, name = self._side, self.info.name
            m = side.evaluator.measure_items(side.point, name, missing, "report", "gate")
            known |= dict(zip(m.item_ids, m.scores, strict=True))
        return tuple(known[item_id] for item_id in item_ids)

    @property
    @override
    def texts(self) -> Mapping[str, str]:
        return self._side.evaluator.prompts(self.info.name)

    def _recorded(self) -> dict[str, float]:
        setting = self._side.evaluator.setting("report")
        return {
            item_id: score
            for m in self._side.evaluator.recorded
            if m.point.canonical == self._side.point
            and m.objective.name == self.info.name
            and setting.fits(m)
            for item_id, score in zip(m.item_ids, m.scores, strict=True)
        }


class ModelSide(Side):
    """A model of its own: a folder, or a name on the Hub."""

    def __init__(self, model: str, recipe: Recipe) -> None:
        """Take a model; it is loaded when it is measured.

        Args:
            model: The folder or name.
            recipe: What is measured, on which device and in which dtype; its base counts not.

        Raises:
            UsageError: The recipe has no objectives.
        """
        if not recipe.objectives:
            raise UsageError(
                f"nothing says what to measure of {model}: the recipe has no `objectives`."
            )
        self.name = model
        self._recipe = recipe

    @cached_property
    def _folder(self) -> Path:
        from backtrack.run.checkpoint_reader import base_folder

        return base_folder(BaseModelReference(model=self.name))

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        code = self._recipe.base.trust_remote_code
        tokenizer: Any = AutoTokenizer.from_pretrained(self._folder, trust_remote_code=code)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def model(self) -> LanguageModel:
        """The loaded model, as objectives ask it."""
        from backtrack.evaluate.torch_model import TorchModel
        from backtrack.path.models.loading import load_model, pick_device

        recipe = self._recipe
        loaded = load_model(
            self._folder,
            recipe.base.dtype,
            pick_device(recipe.placement.device),
            trust_remote_code=recipe.base.trust_remote_code,
            quantization=recipe.base.quantization,
        )
        return TorchModel(loaded, self._tokenizer, recipe.search.batch_size)

    @cached_property
    @override
    def objectives(self) -> Mapping[str, ItemScores]:
        from backtrack.evaluate.build import build_objectives

        built = build_objectives(self._recipe, self._tokenizer)
        items = Items.split(self._recipe.search, built)
        return {o.info.name: _ModelScores(self, o, items.report[o.info.name]) for o in built}


class _ModelScores(_ObjectiveScores):
    """An objective of a model."""

    def __init__(self, side: ModelSide, objective: Objective, item_ids: tuple[str, ...]) -> None:
        super().__init__(objective, item_ids)
        self._side, self._objective = side, objective

    @property
    @override
    def texts(self) -> Mapping[str, str]:
        return dict(zip(self._objective.item_ids, self._objective.prompts(), strict=False))

    @override
    def scores(self, item_ids: Sequence[str]) -> tuple[float, ...]:
        scores = self._objective.measure(self._side.model, item_ids)
        require_scores(self.info, self._side.name, item_ids, scores)
        return tuple(float(score) for score in scores)
