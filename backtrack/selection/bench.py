"""Measure points on fixed items, each objective at most once.

Promised: a measurement is on disk before the next begins, so an interruption loses at most the one
under way. The model and the objectives are built when something must be measured, not before.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pydantic import ValidationError

from backtrack.errors import ObjectiveError, UsageError
from backtrack.evaluate.measuring import measure
from backtrack.point import Point
from backtrack.recipe import Recipe, SearchSection
from backtrack.records import ROLES
from backtrack.run.directory import MEASURED, write_atomically
from backtrack.selection.measured import Setting, Wanted, recorded_setting, tabulate
from backtrack.selection.statistics import split_items

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.evaluate.objective import Objective
    from backtrack.path.placement import Placement
    from backtrack.records import Measurement, ObjectiveInfo, Split
    from backtrack.run.directory import Run
    from backtrack.selection.measured import Table
    from backtrack.selection.progress import Meter


class Bench:
    """A run, what is measured on it, and how.

    Attributes:
        run: The run.
        recipe: What to measure; none where objectives were given ready-made.
        section: How the path is searched.
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe | None,
        placement: Placement | None,
        objectives: Sequence[Objective] | None,
    ) -> None:
        """Take what is ready; build nothing.

        Raises:
            UsageError: Nothing says what to measure, or a role has no objective.
        """
        self.run = run
        self.recipe = recipe or run.recipe
        self.section = self.recipe.search if self.recipe else SearchSection()
        self._placement = placement
        self._objectives = None if objectives is None else tuple(objectives)
        self._items: dict[Split, dict[str, tuple[str, ...]]] = {}
        self._settings: dict[Split, Setting] = {}
        self._recorded = run.measurements()
        self._require_roles()

    @property
    def is_built(self) -> bool:
        return self._placement is not None and self._objectives is not None

    @property
    def placement(self) -> Placement:
        """The live model, loaded at the first call."""
        if self._placement is None:
            from backtrack.path.placement import Placement

            section = self.recipe.placement if self.recipe else None
            self._placement = (
                Placement(self.run, form=section.form, curve=section.curve, device=section.device)
                if section
                else Placement(self.run)
            )
        return self._placement

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is measured, built at the first call."""
        if self._objectives is None:
            from backtrack.evaluate.build import build_objectives

            if self.recipe is None:
                raise UsageError(_NO_OBJECTIVES.format(path=self.run.path))
            self._objectives = tuple(build_objectives(self.recipe, self.placement.tokenizer))
            write_atomically(
                self.run.path / MEASURED, self.recipe.model_dump_json(indent=2) + "\n"
            )
        return self._objectives

    @property
    def ends(self) -> tuple[Point, Point]:
        """Base and final checkpoint."""
        return Point.base(), self.run.final

    def setting(self, split: Split) -> Setting:
        """What measurements of now have in common; builds what is not built."""
        if split not in self._settings:
            self._settings[split] = Setting(
                split=split,
                form=self.placement.form,
                curve=self.placement.curve,
                objectives=tuple(objective.info for objective in self.objectives),
                item_ids=self._split(split),
            )
        return self._settings[split]

    def build(self) -> None:
        """Load the model and build the objectives, if that was not done."""
        self.setting("selection")

    def standing(self, split: Split, like: Setting | None = None) -> Setting | None:
        """The setting to read records under: that of now if built, else the latest on record.

        Args:
            split: Which items.
            like: A setting whose objectives, form and curve must be met, on other items.
        """
        if self.is_built:
            return self.setting(split)
        if not self._is_on_record():
            return None
        forms: dict[str, str] = {}
        if like is not None:
            forms = {"form": like.form, "curve": like.curve}
        elif self._placement is not None:
            forms = {"form": self._placement.form, "curve": self._placement.curve}
        wanted = self._wanted() if like is None else [_want(info) for info in like.objectives]
        return recorded_setting(
            self._recorded, split, wanted, ends=self.ends, forms=forms | self._asked_forms()
        )

    def table(self, setting: Setting) -> Table:
        """What is measured under a setting."""
        return tabulate(setting, self._recorded)

    def reload(self) -> None:
        """Read what others recorded in the meantime."""
        self._recorded = self.run.measurements()

    @property
    def recorded(self) -> Sequence[Measurement]:
        return self._recorded

    def measure(self, point: Point, split: Split, origin: str, meter: Meter) -> None:
        """Measure what is not on record yet, each objective recorded as soon as it is measured."""
        point = point.canonical
        missing = self._missing(point, split)
        started = time.monotonic()
        if missing:
            self.placement.place(point)
        for objective in missing:
            meter.begins(point, objective.info.name)
            item_ids = self._split(split)[objective.info.name]
            measurement = measure(objective, self.placement, item_ids, split=split, origin=origin)
            self.run.record(measurement)
            self._recorded.append(measurement)
        meter.ends(point, time.monotonic() - started if missing else None)

    def _missing(self, point: Point, split: Split) -> list[Objective]:
        setting = self.setting(split)
        there = {
            m.objective.name
            for m in self._recorded
            if m.point.canonical == point and setting.fits(m)
        }
        return [objective for objective in self.objectives if objective.info.name not in there]

    def _split(self, split: Split) -> dict[str, tuple[str, ...]]:
        if not self._items:
            shares = {o.info.name: self._shares(o) for o in self.objectives}
            self._items = {
                "selection": {name: selection for name, (selection, _) in shares.items()},
                "report": {name: report for name, (_, report) in shares.items()},
            }
        return self._items[split]

    def _shares(self, objective: Objective) -> tuple[tuple[str, ...], tuple[str, ...]]:
        items = self.section.items
        try:
            return split_items(
                objective.item_ids, items.selection, items.report, self.section.seed
            )
        except ObjectiveError as error:
            raise ObjectiveError(f"objective {objective.info.name!r}: {error}") from error

    def _is_on_record(self) -> bool:
        """Whether the recipe asks for what the last one measured, as far as files can tell."""
        path = self.run.path / MEASURED
        if self._objectives is not None or self.recipe is None or not path.exists():
            return True
        try:
            last = Recipe.model_validate_json(path.read_bytes())
        except ValidationError:
            return False
        return _what_is_measured(last) == _what_is_measured(self.recipe)

    def _wanted(self) -> list[Wanted]:
        if self._objectives is not None:
            return [_want(objective.info) for objective in self._objectives]
        specified = self.recipe.objectives if self.recipe else ()
        return [Wanted(o.name, o.role, o.weight) for o in specified]

    def _asked_forms(self) -> dict[str, str]:
        """Form and curve the recipe insists on."""
        if self.recipe is None or self._placement is not None:
            return {}
        section = self.recipe.placement
        asked = {"form": section.form, "curve": section.curve}
        return {key: value for key, value in asked.items() if value != "auto"}

    def _require_roles(self) -> None:
        wanted = self._wanted()
        if not wanted:
            raise UsageError(_NO_OBJECTIVES.format(path=self.run.path))
        missing = [role for role in ROLES if role not in {each.role for each in wanted}]
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
    """All of a recipe that decides scores but the weights, whatever they are used for."""
    return (
        [o.model_dump(exclude={"role", "weight"}) for o in recipe.objectives],
        recipe.search.items,
        recipe.search.batch_size,
        recipe.search.seed,
    )


def _want(info: ObjectiveInfo) -> Wanted:
    return Wanted(info.name, info.role, info.weight, info.fingerprint)
