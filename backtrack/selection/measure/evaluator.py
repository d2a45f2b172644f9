"""Measure points on fixed items, each item of an objective at most once.

Promised: a measurement is on disk before the next begins, so an interruption loses at most one.
It names its setting and its checkpoint; what is read is the lines of the setting that the recipe
asks for, and of the checkpoints as they are now. Selection items come in nested rungs, the same at
every point. The engine and the objectives are built when something must be measured, not before.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backtrack.errors import UsageError
from backtrack.evaluate.engine import Engine
from backtrack.evaluate.measure import measure
from backtrack.point import Point
from backtrack.recipe import (
    EngineSection,
    PlacementSection,
    Recipe,
    SearchSection,
    TransformersSection,
)
from backtrack.records import ROLES, Setting
from backtrack.records.record import installed_versions, now, short_digest
from backtrack.run.trust import allow, code_of_recipe
from backtrack.selection.measure.answers import AnswersKept
from backtrack.selection.measure.choosing import choose_by
from backtrack.selection.measure.contamination import record_shared_items
from backtrack.selection.measure.items import Items
from backtrack.selection.measure.settings import (
    LIBRARIES,
    differences,
    read_settings,
    record_setting,
    shared_texts,
)
from backtrack.selection.stats.table import SplitSetting, tabulate

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
    """Measurements under one setting, their positions, and their items by point and name."""

    num_seen: int = 0
    current: list[Measurement] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
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
            recipe: What to measure, from now on; what the run is measured by if None.
            engine: A started engine, or the live model; if None, an engine is started when needed.
            objectives: Built objectives, in place of the recipe's.

        Raises:
            UsageError: No objectives are given, a role has none, the recipe has another base than
                the run, or a live model is given and the recipe's engine loads its own.
        """
        self.run = run
        if recipe is not None:
            choose_by(run, recipe)
            allow(run.manifest, code_of_recipe(recipe))
        self.recipe = run.choosing.recipe if run.choosing else None
        self.section = self.recipe.search if self.recipe else SearchSection()
        self._engine: Engine | None = None
        self._is_engine_given = engine is not None
        if isinstance(engine, Engine):
            self._engine = engine
        elif engine is not None:
            self._engine = self._start_engine(engine)
        self._given = None if objectives is None else tuple(objectives)
        self._objectives = self._given
        self._items: Items | None = None
        self._built: Setting | None = None
        self._placed_at: Point | None = None
        self._splits: dict[Split, SplitSetting] = {}
        self._recorded = run.measurements()
        self._answers = AnswersKept(run, self.section.max_answer_bytes)
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
            record_shared_items(self.run, self.recipe, self._objectives)
        return self._objectives

    @property
    def ends(self) -> tuple[Point, Point]:
        """The base and the final checkpoint."""
        return Point.base(), self.run.final

    def setting(self, split: Split) -> SplitSetting:
        """The setting of new measurements; starts the engine and builds the objectives."""
        if split not in self._splits:
            self._splits[split] = self._part(self._current(), split)
        return self._splits[split]

    def build(self) -> None:
        """Start the engine and build the objectives, unless done."""
        self._current()

    def find_setting(self, split: Split) -> SplitSetting | None:
        """The setting if built, else the latest recorded one of what the recipe asks for."""
        if self.is_built:
            return self.setting(split)
        found = self._find_recorded()
        return None if found is None else self._part(found, split)

    def setting_notes(self) -> list[str]:
        """Say what items share unnoticed, and what differs by rounding between measurements."""
        found = self._built or self._find_recorded()
        if found is None:
            return []
        return [*shared_texts(found), *differences(read_settings(self.run), found)]

    @property
    def is_from_recipe(self) -> bool:
        """Whether everything follows from the recipe, so that another process can measure too."""
        return self._given is None and not self._is_engine_given

    def _current(self) -> Setting:
        """The setting of new measurements, recorded with the recipe that asks for it."""
        if self._built is None:
            self._built = record_setting(
                self.run,
                Setting(
                    request=self._request(),
                    asked=self._asked(),
                    base=self.run.model_digest,
                    form=self.engine.form,
                    curve=self.engine.curve,
                    engine=self._engine_section.decisive,
                    objectives=tuple(objective.info for objective in self.objectives),
                    items={"selection": self._split_items.selection}
                    | {"report": self._split_items.report},
                    clusters=self._split_items.clusters,
                    shared_fields={
                        o.info.name: o.shared_field for o in self.objectives if o.shared_field
                    },
                    seed=self.section.seed,
                    batch_size=self.section.batch_size,
                    versions=installed_versions(LIBRARIES),
                    created=now(),
                ),
            )
            self.run.save_choosing()
        return self._built

    def _find_recorded(self) -> Setting | None:
        request, base = self._request(), self.run.model_digest
        for setting in reversed(read_settings(self.run)):
            measured = setting.form, setting.curve
            if self._engine is not None:
                fits = measured == (self._engine.form, self._engine.curve)
            else:
                fits = self._asked() in (setting.asked, measured)
            if fits and (setting.request, setting.base) == (request, base):
                return setting
        return None

    def _part(self, setting: Setting, split: Split) -> SplitSetting:
        """One split of a setting, with the roles, weights and scales that are asked for now."""
        asked = {info.name: info for info in self._asked_infos}
        objectives = tuple(
            asked.get(info.name, info).model_copy(update={"fingerprint": info.fingerprint})
            for info in setting.objectives
        )
        return SplitSetting.of(setting, split, objectives, self.run.checkpoint_digests())

    def _request(self) -> str:
        """Digest of what is to be measured, known before anything is built."""
        objectives: list[object] = [o.info.fingerprint for o in self._given or ()]
        if self._given is None:
            incidental = {"role", "weight", "unit", "range"}
            asked = self.recipe.objectives if self.recipe else ()
            # Without defaults, a key that a later version adds leaves older settings as they are.
            objectives = [
                o.model_dump(mode="json", exclude=incidental, exclude_defaults=True) for o in asked
            ]
        items, seed = self.section.items.model_dump(), self.section.seed
        return short_digest(objectives, items, seed, self._engine_section.decisive)

    def _asked(self) -> tuple[str, str]:
        """Form and curve as the recipe asks for them, unless an engine was given with others."""
        section = self.recipe.placement if self.recipe else PlacementSection()
        form, curve = section.form, section.curve
        if self._engine is not None:
            form = form if form in ("auto", self._engine.form) else self._engine.form
            curve = curve if curve in ("auto", self._engine.curve) else self._engine.curve
        return form, curve

    def table(self, setting: SplitSetting) -> ScoreTable:
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
        return self._split_items.rungs(split)

    def missing_items(self, point: Point, split: Split, rung: int | None = None) -> int:
        """Number of items of a point, or of one of its rungs, that are not recorded yet."""
        return sum(len(ids) for _, ids in self._missing(point.canonical, split, rung))

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
        missing = self._missing(point, split, rung)
        if missing and self._placed_at != point:
            self._placed_at = None
            self.engine.place(point)
            self._placed_at = point
        for objective, item_ids in missing:
            meter.begins(point, objective.info.name)
            setting = self.setting(split)
            with self.engine.noting() as answers:
                measurement = measure(
                    objective,
                    self.engine,
                    item_ids,
                    split=split,
                    origin=origin,
                    setting=setting.digests[objective.info.name],
                    checkpoint=setting.checkpoint_of(point),
                )
            self.run.record(measurement)
            self._recorded.append(measurement)
            self._answers.keep(measurement, objective, answers)
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

    def measured_since(self, num_before: int) -> list[Measurement]:
        """Those of `current` that follow the first `num_before` measurements of the run."""
        index = self._index("selection")
        return index.current[bisect_left(index.positions, num_before) :]

    def _recorded_items(self, point: Point, split: Split) -> dict[str, set[str]]:
        """Recorded item ids of a point by objective name."""
        return self._index(split).items[point]

    def _index(self, split: Split) -> _Index:
        """Index the measurements recorded since the last call."""
        index = self._indices.setdefault(split, _Index())
        setting = self.setting(split)
        for position, m in enumerate(self._recorded[index.num_seen :], index.num_seen):
            if setting.fits(m):
                index.current.append(m)
                index.positions.append(position)
                index.items[m.point.canonical][m.objective.name].update(m.item_ids)
        index.num_seen = len(self._recorded)
        return index

    def _missing(
        self, point: Point, split: Split, rung: int | None
    ) -> list[tuple[Objective, tuple[str, ...]]]:
        """Items not recorded at a point, by rung and objective."""
        recorded = self._recorded_items(point, split)
        rungs = self.rungs(split)
        found: list[tuple[Objective, tuple[str, ...]]] = []
        for each in rungs if rung is None else rungs[rung : rung + 1]:
            for objective in self.objectives:
                name = objective.info.name
                ids = tuple(i for i in each.get(name, ()) if i not in recorded[name])
                found += [(objective, ids)] if ids else []
        return found

    @property
    def _split_items(self) -> Items:
        if self._items is None:
            self._items = Items.split(self.section, self.objectives)
        return self._items

    @property
    def _asked_infos(self) -> list[ObjectiveInfo]:
        """The objectives as they are asked for now; those of a recipe without a fingerprint."""
        if self._given is not None:
            return [objective.info for objective in self._given]
        return [section.info("") for section in self.recipe.objectives] if self.recipe else []

    def _require_roles(self) -> None:
        requested = self._asked_infos
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


def _key(m: Measurement) -> tuple[object, ...]:
    """The identity of a measurement."""
    return m.point, m.checkpoint, m.setting, m.split, m.item_ids
