"""Have points measured on fixed items, each item of an objective at most once, and record that.

Promised: a measurement is on disk as soon as it is known, so an interruption loses only what is
under way. It names its setting and its checkpoint; what is read is the lines of the setting that
the recipe asks for, and of the checkpoints as they are now. Selection items come in nested rungs,
the same at every point. Engines are started and objectives built when something must be measured,
not before. This is the only writer of a run's measurements.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backtrack.errors import UsageError
from backtrack.point import Point
from backtrack.recipe import (
    ClusterSection,
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
from backtrack.selection.measurers.executor import Executor, InProcess
from backtrack.selection.measurers.measurer import NO_OBJECTIVES, Facts, Measurer, Request
from backtrack.selection.measurers.ray_executor import RayExecutor
from backtrack.selection.stats.table import SplitSetting, tabulate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backtrack.evaluate.engine import Engine
    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.path.placement import Placement
    from backtrack.records import Measurement, ObjectiveInfo, Split
    from backtrack.records.answers import Question
    from backtrack.records.search import Evaluation
    from backtrack.records.selection import Baseline
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
        cluster: ClusterSection | None = None,
    ) -> None:
        """Check what is given; load and start nothing.

        Args:
            run: A run with at least one checkpoint.
            recipe: What to measure, from now on; what the run is measured by if None.
            engine: A started engine, or the live model; if None, an engine is started when needed.
            objectives: Built objectives, in place of the recipe's.
            cluster: By how many processes, and where; the recipe's if None. An engine or
                objectives that are given are in this process, and so is all else then.

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
        cluster = cluster or (self.recipe.cluster if self.recipe else ClusterSection())
        is_here = cluster.is_one_process or engine is not None or objectives is not None
        self._executor: Executor = (
            InProcess(Measurer(run, self.recipe, engine, objectives))
            if is_here
            else RayExecutor(run, run.choosing, cluster)
        )
        self._given = None if objectives is None else tuple(objectives)
        self._known_facts: Facts | None = None
        self._items: Items | None = None
        self._built: Setting | None = None
        self._splits: dict[Split, SplitSetting] = {}
        self._recorded = run.measurements()
        self._answers = AnswersKept(run, self.section.max_answer_bytes)
        self._indices: dict[Split, _Index] = {}
        self._expected: list[Request] = []
        self._ahead: dict[Request, Measurement] = {}
        self._require_roles()

    @property
    def is_built(self) -> bool:
        return self._executor.is_built

    def close(self) -> None:
        """End what measures in other processes."""
        self._executor.close()

    @property
    def is_in_process(self) -> bool:
        """Whether the model runs in a process of ours, as baselines off the path need."""
        return self._engine_section.is_in_process

    @property
    def num_measurers(self) -> int:
        """How many requests are answered at the same time."""
        return self._executor.num_measurers

    @property
    def _engine_section(self) -> EngineSection:
        return self.recipe.engine if self.recipe else TransformersSection()

    @property
    def facts(self) -> Facts:
        """The engine and the objectives, which are started and built at the first call."""
        if self._known_facts is None:
            self._known_facts = self._executor.ask(Measurer.facts)
            if self._given is None:
                record_shared_items(self.run, self._executor.ask(Measurer.shared_items))
        return self._known_facts

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

    def _current(self) -> Setting:
        """The setting of new measurements, recorded with the recipe that asks for it."""
        if self._built is None:
            facts, items = self.facts, self._split_items
            self._built = record_setting(
                self.run,
                Setting(
                    request=self._request(),
                    asked=self._asked(),
                    base=self.run.model_digest,
                    form=facts.form,
                    curve=facts.curve,
                    engine=self._engine_section.decisive,
                    objectives=tuple(objective.info for objective in facts.objectives),
                    items={"selection": items.selection, "report": items.report},
                    clusters=items.clusters,
                    shared_fields={
                        o.info.name: o.shared_field for o in facts.objectives if o.shared_field
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
            measured, known = (setting.form, setting.curve), self._executor.form_and_curve
            is_asked = self._asked() in (setting.asked, measured)
            fits = is_asked if known is None else measured == known
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
        asked = section.form, section.curve
        known = self._executor.form_and_curve or asked
        form, curve = (a if a in ("auto", k) else k for a, k in zip(asked, known, strict=True))
        return form, curve

    def table(self, setting: SplitSetting) -> ScoreTable:
        """Scores recorded under a setting; in which order they were measured decides nothing."""
        return tabulate(setting, sorted(self._recorded, key=_place_on_path))

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
        self,
        evaluations: Sequence[Evaluation],
        split: Split,
        meter: Meter,
        on_measured: Callable[[Evaluation], None] | None = None,
    ) -> None:
        """Measure points on items not recorded yet, recording each objective at once.

        Args:
            evaluations: Points, and the rung of items that each is measured on.
            split: Which items.
            meter: Receives the progress.
            on_measured: Called with each evaluation once all of it is recorded.
        """
        asked = {r: e for e in evaluations for r in self._requests(e, split)}
        left = Counter(asked.values())
        for measured in self._executor.measured(
            tuple(asked), lambda request: meter.begins(request.point, request.objective)
        ):
            m, evaluation = measured.measurement, asked[measured.request]
            self.run.record(m)
            self._recorded.append(m)
            self._answers.keep(m, measured.answers, self._questions)
            meter.scored(len(m.item_ids), m.seconds / self.num_measurers)
            left[evaluation] -= 1
            if left[evaluation] == 0:
                meter.ends(m.point)
                if on_measured is not None:
                    on_measured(evaluation)

    def expect_items(
        self, point: Point, objective: str, item_ids: Sequence[str], split: Split, origin: str
    ) -> None:
        """Announce a call of `measure_items`; what is expected is measured along with the next."""
        self._expected.append(self._request_of(point, objective, item_ids, split, origin))

    def measure_items(
        self, point: Point, objective: str, item_ids: Sequence[str], split: Split, origin: str
    ) -> Measurement:
        """Measure any items of an objective at a point; recorded if they are of the split."""
        asked = self._request_of(point, objective, item_ids, split, origin)
        if asked not in self._ahead:
            requests = dict.fromkeys([*self._expected, asked])
            self._expected = []
            points = list(dict.fromkeys(request.point for request in requests))
            by_point = sorted(requests, key=lambda request: points.index(request.point))
            for measured in self._executor.measured(by_point, lambda _: None):
                m = measured.measurement
                self._ahead[measured.request] = m
                if self.setting(split).fits(m):
                    self.run.record(m)
                    self._recorded.append(m)
        return self._ahead.pop(asked)

    def _request_of(
        self, point: Point, objective: str, item_ids: Sequence[str], split: Split, origin: str
    ) -> Request:
        point, setting = point.canonical, self.setting(split)
        digests = setting.digests[objective], setting.checkpoint_of(point)
        return Request(point, objective, tuple(item_ids), split, origin, *digests)

    def prompts(self, name: str) -> dict[str, str]:
        """The items of an objective as the model reads them, by item."""
        return self._executor.ask(Measurer.prompts, name)

    def score_baseline(
        self, baseline: Baseline, item_ids: Mapping[str, tuple[str, ...]]
    ) -> dict[str, tuple[tuple[float, ...], float]]:
        """Score a baseline that is no point; see `Measurer.score_baseline`."""
        return self._executor.ask(Measurer.score_baseline, baseline, item_ids)

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
    ) -> list[tuple[str, tuple[str, ...]]]:
        """Names of objectives with their items not recorded at a point, rung by rung."""
        recorded = self._recorded_items(point, split)
        rungs = self.rungs(split)
        found: list[tuple[str, tuple[str, ...]]] = []
        for each in rungs if rung is None else rungs[rung : rung + 1]:
            for name in (objective.info.name for objective in self.facts.objectives):
                ids = tuple(i for i in each.get(name, ()) if i not in recorded[name])
                found += [(name, ids)] if ids else []
        return found

    def _requests(self, evaluation: Evaluation, split: Split) -> list[Request]:
        """What must be asked for an evaluation to be recorded."""
        point, origin = evaluation.point.canonical, evaluation.origin
        return [
            self._request_of(point, name, item_ids, split, origin)
            for name, item_ids in self._missing(point, split, evaluation.rung)
        ]

    def _questions(self, name: str) -> dict[str, Question]:
        return self._executor.ask(Measurer.questions, name)

    @property
    def _split_items(self) -> Items:
        if self._items is None:
            self._items = Items.split(self.section, self.facts.objectives)
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
            raise UsageError(NO_OBJECTIVES.format(path=self.run.path))
        missing = [role for role in ROLES if role not in {each.role for each in requested}]
        if missing:
            raise UsageError(
                f"no objective has the role `{missing[0]}`; each role needs one. "
                f"Add one under `objectives:` with `role: {missing[0]}`."
            )


def _place_on_path(m: Measurement) -> tuple[int, float, str]:
    point = m.point.canonical
    return point.step, point.alpha, point.profile
