"""A run without weights: scores follow formulas, so true scores are known at every point."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from backtrack.evaluate.engine import Engine
from backtrack.point import Point
from backtrack.recipe import ChoosingRecipe, Recipe, TransformersSection
from backtrack.records import (
    BaseModelReference,
    CheckpointEntry,
    Manifest,
    Measurement,
    Method,
    ObjectiveInfo,
)
from backtrack.records.record import short_digest
from backtrack.records.setting import setting_digest
from backtrack.run.directory import Run
from backtrack.selection.measure.evaluator import Evaluator
from backtrack.selection.measure.settings import SETTINGS, read_settings
from backtrack.selection.stats.table import SplitSetting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from backtrack.records import Split

STEPS = (10, 20, 30, 40)


def make_info(name: str, role: str, **given: Any) -> ObjectiveInfo:
    settings = {"kind": "python", "direction": "maximize", "unit": "fraction", **given}
    return ObjectiveInfo.model_validate(
        {"name": name, "role": role, "fingerprint": f"of-{name}", **settings}
    )


class FakeEngine(Engine):
    """An engine without weights; lists the points it was placed at."""

    def __init__(self, form: Any = "attached", curve: Any = "native") -> None:
        self.form = form
        self.curve = curve
        self.tokenizer = None
        self.visits: list[Point] = []
        model: Any = SimpleNamespace(point=Point.base(), num_tokens=0)
        self.language_model = model
        self.placed: Any = self

    @property
    def point(self) -> Point:
        model: Any = self.language_model
        point: Point = model.point
        return point

    def noting(self) -> Any:
        return nullcontext({})

    def place(self, point: Point) -> None:
        self.visits.append(point)
        model: Any = self.language_model
        model.point = point

    def distance(self, point: Point) -> float:
        return 0.0 if point.is_base else point.alpha * point.step


@dataclass
class Formula:
    """An objective whose mean is `mean(progress)`: alpha times step over the last step.

    An item is right if its difficulty, the same at all points but for noise of deviation `shake`,
    lies below the mean. With `is_exact` every item scores the mean plus or minus 0.005.
    """

    info: ObjectiveInfo
    mean: Callable[[float], float]
    num_items: int = 400
    seed: int = 0
    shake: float = 0.05
    is_exact: bool = False
    calls: list[tuple[Point, tuple[str, ...]]] = field(default_factory=list)
    breaks_at: int | None = None
    clusters: Mapping[str, str] = field(default_factory=dict)
    lent: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    shared_field: str | None = None

    @property
    def item_ids(self) -> tuple[str, ...]:
        return tuple(f"{self.info.name}/{i:05d}" for i in range(self.num_items))

    def texts(self) -> tuple[str, ...]:
        return ()

    def measure(self, model: Any, item_ids: Sequence[str]) -> tuple[float, ...]:
        if self.breaks_at == len(self.calls):
            raise KeyboardInterrupt
        point: Point = model.point
        self.calls.append((point, tuple(item_ids)))
        mean = self.mean(point.alpha * point.step / STEPS[-1])
        numbers = [int(item_id.rpartition("/")[2]) for item_id in item_ids]
        if self.is_exact:
            return tuple(mean + 0.01 * (number % 2 - 0.5) for number in numbers)
        difficulty = np.random.default_rng(self.seed).random(self.num_items)
        own = [self.seed, point.step, round(point.alpha * 1000)]
        shaken = difficulty + self.shake * np.random.default_rng(own).normal(size=self.num_items)
        return tuple(float(shaken[number] < mean) for number in numbers)


def pair(
    target: Callable[[float], float] | None = None,
    general: Callable[[float], float] | None = None,
    **given: Any,
) -> tuple[Formula, Formula]:
    """A target that saturates and a general score that falls faster and faster, by default."""
    seed = given.pop("seed", 0)
    return (
        Formula(
            make_info("sums", "target"),
            target or (lambda x: 0.2 + 0.5 * (1 - 2.718 ** (-4 * x))),
            seed=2 * seed + 1,
            **given,
        ),
        Formula(
            make_info("prose", "general"),
            general or (lambda x: 0.7 - 0.35 * x**2),
            seed=2 * seed + 2,
            **given,
        ),
    )


def make_recipe(**search: Any) -> Recipe:
    racing = {"shares": [0.25]}
    settings = {"trials": 3, "checkpoints": 2, "sampler": "random", "racing": racing, **search}
    return Recipe.model_validate({"name": "toy", "base": "toy", "search": settings})


def make_run(path: Path, recipe: Recipe | None = None, steps: Sequence[int] = STEPS) -> Run:
    manifest = Manifest(
        name="toy",
        base=BaseModelReference(model="toy"),
        method=Method(kind="lora"),
        created="2000-01-01T00:00:00+00:00",
    )
    run = Run.create(path, manifest, recipe or make_recipe())
    for step in steps:
        run.add_entry(entry_of(step))
    return run


def setting_of(info: ObjectiveInfo) -> str:
    """What measurements by a `FakeEngine` name their setting by."""
    base = short_digest(BaseModelReference(model="toy").digest, {})
    engine = TransformersSection().decisive
    return setting_digest(base, "attached", "native", engine, info.fingerprint)


def digest_of(step: int) -> str:
    return entry_of(step).digest


def split_setting(
    split: Split, infos: Sequence[ObjectiveInfo], item_ids: dict[str, tuple[str, ...]]
) -> SplitSetting:
    """The setting of `measured`, for these items."""
    return SplitSetting(
        split,
        "attached",
        "native",
        tuple(infos),
        item_ids,
        {info.name: setting_of(info) for info in infos},
        {step: digest_of(step) for step in STEPS},
    )


def entry_of(step: int) -> CheckpointEntry:
    return CheckpointEntry(step=step, folder=f"step-{step}", num_bytes=0, sha256={"w": str(step)})


def measured(
    objective: Formula, point: Point, item_ids: Sequence[str], split: str = "selection"
) -> Measurement:
    """The measurement a search would record."""
    engine = FakeEngine()
    engine.place(point)
    return Measurement.model_validate(
        {
            "point": point.canonical,
            "checkpoint": "" if point.is_base else digest_of(point.step),
            "setting": setting_of(objective.info),
            "objective": objective.info,
            "form": engine.form,
            "curve": engine.curve,
            "split": split,
            "item_ids": tuple(item_ids),
            "scores": objective.measure(engine.language_model, item_ids),
            "distance": engine.distance(point),
            "seconds": 0.0,
        }
    )


def as_if_by_recipe(run: Run, recipe: dict[str, Any]) -> None:
    """Change the recorded setting to one that a recipe of functions asked for."""
    run.choose_by(ChoosingRecipe(recipe=Recipe.model_validate(recipe)))
    run.save_choosing()
    (setting,) = read_settings(run)
    request = Evaluator(run, None, None, None)._request()
    changed = setting.model_copy(update={"request": request, "asked": ("auto", "auto")})
    (run.path / SETTINGS).write_text(changed.model_dump_json() + "\n")
