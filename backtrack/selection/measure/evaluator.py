"""Measure points on fixed items, each objective at most once.

Promised: a measurement is on disk before the next begins, so an interruption loses at most one.
Selection items come in nested rungs, the same at every point; each rung is one measurement. The
engine and the objectives are built when something must be measured, not before.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backtrack.errors import UsageError
from backtrack.evaluate.engine import Engine
from backtrack.evaluate.measure import measure
from backtrack.point import Point
from backtrack.recipe import EngineSection, Recipe, SearchSection, TransformersSection
from backtrack.records import ROLES
from backtrack.run.directory import MEASURED
from backtrack.run.files import write_atomically
from backtrack.selection.measure.contamination import record_shared_items
from backtrack.selection.measure.items import ITEMS, Items, read_items, save_items
from backtrack.selection.stats.items import items_digest
from backtrack.selection.stats.recorded_setting import RequestedObjective, recorded_setting
from backtrack.selection.stats.table import Setting, tabulate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.path.placement import Placement
    from backtrack.records import Measurement, ObjectiveInfo, Split
    from backtrack.run.directory import Run
    from backtrack.selection.measure.progress import Meter
    from backtrack.selection.stats.table import ScoreTable


@dataclass
class _Index:
    """Measurements under one setting, and their items by point and objective name."""

    num_seen: int = 0
    current: list[Measurement] = field(default_factory=list)
    items: dict[Point, dict[str, set[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(set))
    )


class Evaluator:
    """Measures points of a run.

    Attributes:
        run: The run.
        recipe: What to measure; none where objectives were given ready-made.
        section: How the path is searched.
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe | None,
        engine: Engine | Placement | None,
        objectives: Sequence[Objective] | None,
    ) -> None:
        """Check what is given; load and start nothing.

        Args:
            run: A run with at least one checkpoint.
            recipe: What to measure; the run's own if None.
            engine: A started engine, or the live model; if None, an engine is started when needed.
            objectives: Built objectives, in place of the recipe's.

        Raises:
            UsageError: No objectives are given, a role has none, or a live model is given and the
                recipe's engine loads its own.
        """
        self.run = run
        self.recipe = recipe or run.recipe
        self.section = self.recipe.search if self.recipe else SearchSection()
        self._engine: Engine | None = None
        if isinstance(engine, Engine):
            self._engine = engine
        elif engine is not None:
            self._engine = self._start_engine(engine)
        self._objectives = None if objectives is None else tuple(objectives)
        self._items: Items | None = None
        self._saved_splits: set[Split] = set()
        self._placed_at: Point | None = None
        self._settings: dict[Split, Setting] = {}
        self._recorded = run.measurements()
        self._indices: dict[Split, _Index] = {}
        self._require_roles()

    @property
    def is_built(self) -> bool:
        return self._engine is not None and self._objectives is not None

    @property
    def is_in_process(self) -> bool:
        """Whether the model runs in this process, as baselines off the path need."""
        return self._engine_section.is_in_process

    @property
    def engine(self) -> Engine:
        """The engine, started at the first call."""
        if self._engine is None:
            self._engine = self._start_engine(None)
        return self._engine

    @property
    def _engine_section(self) -> EngineSection:
        return self.recipe.engine if self.recipe else TransformersSection()

    def _start_engine(self, placed: Placement | None) -> Engine:
        from backtrack.selection.measure.engines import start_engine

        return start_engine(self.run, self.recipe, placed)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives, built at the first call."""
        if self._objectives is None:
            from backtrack.evaluate.build import build_objectives

            if self.recipe is None:
                raise UsageError(_NO_OBJECTIVES.format(path=self.run.path))
            self._objectives = build_objectives(self.recipe, self.engine.tokenizer)
            write_atomically(
                self.run.path / MEASURED, self.recipe.model_dump_json(indent=2) + "\n"
            )
            record_shared_items(self.run, self.recipe, self._objectives)
        return self._objectives

    @property
    def ends(self) -> tuple[Point, Point]:
        """The base and the final checkpoint."""
        return Point.base(), self.run.final

    def setting(self, split: Split) -> Setting:
        """The setting of new measurements; starts the engine and builds the objectives."""
        if split not in self._settings:
            self._settings[split] = Setting(
                split=split,
                form=self.engine.form,
                curve=self.engine.curve,
                objectives=tuple(objective.info for objective in self.objectives),
                item_ids=self._split_items.of(split),
            )
        return self._settings[split]

    def build(self) -> None:
        """Start the engine and build the objectives, unless done."""
        self.setting("selection")

    def find_setting(self, split: Split, like: Setting | None = None) -> Setting | None:
        """Find the setting of recorded measurements: the current one if built, else the latest.

        Args:
            split: Which items.
            like: A setting of other items, with the required objectives, form and curve.
        """
        if self.is_built:
            return self.setting(split)
        if not self._is_recipe_measured():
            return None
        forms: dict[str, str] = {}
        if like is not None:
            forms = {"form": like.form, "curve": like.curve}
        elif self._engine is not None:
            forms = {"form": self._engine.form, "curve": self._engine.curve}
        requested = (
            self._requested() if like is None else [_request(info) for info in like.objectives]
        )
        return recorded_setting(
            self._recorded,
            split,
            requested,
            ends=self.ends,
            forms=forms | self._required_forms(),
            items=read_items(self.run.path / ITEMS),
        )

    def table(self, setting: Setting) -> ScoreTable:
        """Scores recorded under a setting."""
        return tabulate(setting, self._recorded)

    def reload(self) -> None:
        """Read again, with what other workers recorded."""
        self._recorded = self.run.measurements()
        self._indices.clear()

    def merge(self, received: Sequence[Measurement]) -> None:
        """Reload, and record measurements received from other machines."""
        self.reload()
        known = {_key(m) for m in self._recorded}
        for m in received:
            if _key(m) not in known:
                self.run.record(m)
                self._recorded.append(m)

    @property
    def recorded(self) -> Sequence[Measurement]:
        return self._recorded

    def num_items(self, split: Split = "selection", rung: int | None = None) -> int:
        """Number of items of a split, or of one rung of it, over all objectives."""
        rungs = self.rungs(split)
        chosen = rungs if rung is None else rungs[rung : rung + 1]
        return sum(len(ids) for each in chosen for ids in each.values())

    def rungs(self, split: Split) -> list[dict[str, tuple[str, ...]]]:
        """Item ids of each rung by objective name; starts the engine, builds the objectives."""
        rungs = self._split_items.rungs(split)
        if len(rungs) > 1 and split not in self._saved_splits:
            save_items(self.run.path / ITEMS, self._split_items.of(split))
            self._saved_splits.add(split)
        return rungs

    def measure(
        self, point: Point, split: Split, origin: str, meter: Meter, rung: int | None = None
    ) -> None:
        """Measure a point on items not recorded yet, recording each objective at once.

        Args:
            point: The point.
            split: Which items.
            origin: What asked for the point, as recorded.
            meter: Receives the progress.
            rung: Which rung of the items; all rungs if None.
        """
        point = point.canonical
        rungs = self.rungs(split)
        missing = [
            (objective, item_ids)
            for each in (rungs if rung is None else rungs[rung : rung + 1])
            for objective, item_ids in self._missing(point, split, each)
        ]
        if missing and self._placed_at != point:
            self._placed_at = None
            self.engine.place(point)
            self._placed_at = point
        for objective, item_ids in missing:
            meter.begins(point, objective.info.name)
            whole = self.setting(split).item_ids[objective.info.name]
            measurement = measure(
                objective,
                self.engine,
                item_ids,
                split=split,
                origin=origin,
                whole="" if len(whole) == len(item_ids) else items_digest(whole),
            )
            self.run.record(measurement)
            self._recorded.append(measurement)
            meter.scored(len(item_ids), measurement.seconds)
        meter.ends(point)

    def expect(self, points: Sequence[Point]) -> None:
        """Announce the next points, for an engine that answers several at once."""
        self.engine.expect(points)

    def rungs_done(self, point: Point) -> int:
        """Number of rungs, from the first, recorded for all objectives."""
        recorded = self._recorded_items(point.canonical, "selection")
        rungs = self.rungs("selection")
        for done, rung in enumerate(rungs):
            if any(not recorded[name].issuperset(ids) for name, ids in rung.items()):
                return done
        return len(rungs)

    @property
    def current(self) -> list[Measurement]:
        """Measurements of the selection items under the current setting, in order."""
        return self._index("selection").current

    def _recorded_items(self, point: Point, split: Split) -> dict[str, set[str]]:
        """Recorded item ids of a point by objective name."""
        return self._index(split).items[point]

    def _index(self, split: Split) -> _Index:
        """Index the measurements recorded since the last call."""
        index = self._indices.setdefault(split, _Index())
        setting = self.setting(split)
        for m in self._recorded[index.num_seen :]:
            if setting.fits(m):
                index.current.append(m)
                index.items[m.point.canonical][m.objective.name].update(m.item_ids)
        index.num_seen = len(self._recorded)
        return index

    def _missing(
        self, point: Point, split: Split, rung: dict[str, tuple[str, ...]]
    ) -> list[tuple[Objective, tuple[str, ...]]]:
        recorded = self._recorded_items(point, split)
        return [
            (objective, rung[objective.info.name])
            for objective in self.objectives
            if objective.info.name in rung
            and not recorded[objective.info.name].issuperset(rung[objective.info.name])
        ]

    @property
    def _split_items(self) -> Items:
        if self._items is None:
            self._items = Items.split(self.section, self.objectives)
        return self._items

    def _is_recipe_measured(self) -> bool:
        """Whether the recipe measures what the last measured recipe did."""
        path = self.run.path / MEASURED
        if self._objectives is not None or self.recipe is None or not path.exists():
            return True
        last = self.run.measured_recipe()
        return last is None or _what_is_measured(last) == _what_is_measured(self.recipe)

    def _requested(self) -> list[RequestedObjective]:
        if self._objectives is not None:
            return [_request(objective.info) for objective in self._objectives]
        specified = self.recipe.objectives if self.recipe else ()
        return [RequestedObjective(o.name, o.role, o.weight) for o in specified]

    def _required_forms(self) -> dict[str, str]:
        """Form and curve set in the recipe."""
        if self.recipe is None or self._engine is not None:
            return {}
        section = self.recipe.placement
        asked = {"form": section.form, "curve": section.curve}
        return {key: value for key, value in asked.items() if value != "auto"}

    def _require_roles(self) -> None:
        requested = self._requested()
        if not requested:
            raise UsageError(_NO_OBJECTIVES.format(path=self.run.path))
        missing = [role for role in ROLES if role not in {each.role for each in requested}]
        if missing:
            raise UsageError(
                f"no objective has the role `{missing[0]}`; each role needs one. "
                f"Add one under `objectives:` with `role: {missing[0]}`."
            )


_NO_OBJECTIVES = (
    "{path}: nothing says what to measure. Give a recipe with --recipe FILE, or add "
    "`objectives:` to the run's recipe: at least one with `role: target` and one with "
    "`role: general`."
)


def _what_is_measured(recipe: Recipe) -> object:
    """What decides scores in a recipe, without roles and weights."""
    return (
        [o.model_dump(exclude={"role", "weight"}) for o in recipe.objectives],
        recipe.search.items,
        recipe.search.seed,
        recipe.engine.decides(recipe.search.batch_size),
    )


def _key(m: Measurement) -> tuple[object, ...]:
    """The identity of a measurement."""
    return m.point, m.objective.name, m.objective.fingerprint, m.form, m.curve, m.split, m.item_ids


def _request(info: ObjectiveInfo) -> RequestedObjective:
    return RequestedObjective(info.name, info.role, info.weight, info.fingerprint)
