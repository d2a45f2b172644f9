"""From measurements to tables of scores that may be compared.

Scores are compared only under one SETTING: the same objectives down to their fingerprints, the
same items, the same form and curve. What was measured under another is left out, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point
    from backtrack.records import CurveName, Form, Measurement, ObjectiveInfo, Role, Split

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Wanted:
    """What is known of an objective before it is built; none stands for anything.

    Attributes:
        name: Its name.
        role: The side it stands for now, whatever it stood for when it was measured.
        weight: Its share now.
        fingerprint: Digest, if known.
    """

    name: str
    role: Role
    weight: float
    fingerprint: str | None = None


@dataclass(frozen=True)
class Setting:
    """What must agree for scores to be compared.

    Attributes:
        split: Which items.
        form: How the model stood.
        curve: Which curve led there.
        objectives: What was measured.
        item_ids: Items by objective's name, sorted.
    """

    split: Split
    form: Form
    curve: CurveName
    objectives: tuple[ObjectiveInfo, ...]
    item_ids: dict[str, tuple[str, ...]]

    @cached_property
    def _parts(self) -> dict[str, tuple[str, frozenset[str]]]:
        return {o.name: (o.fingerprint, frozenset(self.item_ids[o.name])) for o in self.objectives}

    def fits(self, measurement: Measurement) -> bool:
        """Whether a measurement was taken under this setting."""
        name = measurement.objective.name
        return (
            (measurement.split, measurement.form, measurement.curve)
            == (self.split, self.form, self.curve)
            and name in self._parts
            and self._parts[name]
            == (measurement.objective.fingerprint, frozenset(measurement.item_ids))
        )


@dataclass(frozen=True)
class Table:
    """Scores of the same items at several points.

    Attributes:
        setting: What all of them share.
        points: In the order of measuring.
        origins: Who asked, by point.
        distances: From the base, [points].
        scores: By objective's name, [points, items].
    """

    setting: Setting
    points: tuple[Point, ...]
    origins: tuple[str, ...]
    distances: Floats
    scores: dict[str, Floats]

    @cached_property
    def means(self) -> dict[str, Floats]:
        """Mean score by objective's name, [points]."""
        return {name: scores.mean(axis=1) for name, scores in self.scores.items()}

    def column(self, point: Point) -> int:
        """Where a point stands.

        Raises:
            ValueError: It is not in the table.
        """
        return self.points.index(point.canonical)

    def holds(self, points: Iterable[Point]) -> bool:
        return {point.canonical for point in points} <= set(self.points)


def tabulate(setting: Setting, measurements: Iterable[Measurement]) -> Table:
    """The points whose every objective was measured under `setting`; later scores win."""
    found: dict[Point, dict[str, Measurement]] = {}
    for measurement in measurements:
        if setting.fits(measurement):
            of_point = found.setdefault(measurement.point.canonical, {})
            of_point[measurement.objective.name] = measurement
    rows = {
        point: [by_name[o.name] for o in setting.objectives]
        for point, by_name in found.items()
        if len(by_name) == len(setting.objectives)
    }
    return Table(
        setting=setting,
        points=tuple(rows),
        origins=tuple(row[0].origin for row in rows.values()),
        distances=np.array([row[0].distance for row in rows.values()]),
        scores={
            objective.name: np.array(
                [_ordered(row[i], setting.item_ids[objective.name]) for row in rows.values()]
            ).reshape(len(rows), len(setting.item_ids[objective.name]))
            for i, objective in enumerate(setting.objectives)
        },
    )


def _ordered(measurement: Measurement, item_ids: Sequence[str]) -> list[float]:
    scores = dict(zip(measurement.item_ids, measurement.scores, strict=True))
    return [scores[item_id] for item_id in item_ids]


def strangers(setting: Setting, measurements: Iterable[Measurement]) -> tuple[Point, ...]:
    """Points measured on this split only under another setting, or not on every objective."""
    measurements = list(measurements)
    inside = set(tabulate(setting, measurements).points)
    outside = {m.point.canonical: None for m in measurements if m.split == setting.split}
    return tuple(point for point in outside if point not in inside)


def recorded_setting(
    measurements: Sequence[Measurement],
    split: Split,
    wanted: Sequence[Wanted],
    *,
    ends: Sequence[Point],
    forms: Mapping[str, str],
) -> Setting | None:
    """The latest setting on record under which every objective was measured at both ends.

    Nothing is built for this: it trusts that the objectives on record are those now asked for.

    Args:
        measurements: In the order of measuring.
        split: Which items.
        wanted: The objectives asked for.
        ends: Base and final checkpoint.
        forms: Required `form` and `curve`, where they are known.
    """
    fitting = [
        m
        for m in measurements
        if m.split == split and all(getattr(m, key) == value for key, value in forms.items())
    ]
    ways = dict.fromkeys((m.form, m.curve) for m in reversed(fitting))
    for form, curve in ways:
        on_way = [m for m in fitting if (m.form, m.curve) == (form, curve)]
        latest = [_latest(on_way, each, ends) for each in wanted]
        found = [m for m in latest if m is not None]
        if len(found) == len(wanted):
            return _setting_of(found, wanted)
    return None


def _latest(
    measurements: Sequence[Measurement], wanted: Wanted, ends: Sequence[Point]
) -> Measurement | None:
    """A measurement of the latest fingerprint and items measured at both ends."""
    groups: dict[tuple[str, frozenset[str]], list[Measurement]] = {}
    for m in measurements:
        same = wanted.fingerprint in (None, m.objective.fingerprint)
        if m.objective.name == wanted.name and same:
            key = m.objective.fingerprint, frozenset(m.item_ids)
            groups[key] = [*groups.pop(key, []), m]
    whole = [group for group in groups.values() if set(ends) <= {m.point.canonical for m in group}]
    return whole[-1][-1] if whole else None


def _setting_of(found: Sequence[Measurement], wanted: Sequence[Wanted]) -> Setting:
    first = found[0]
    objectives = tuple(
        m.objective.model_copy(update={"role": each.role, "weight": each.weight})
        for m, each in zip(found, wanted, strict=True)
    )
    return Setting(
        split=first.split,
        form=first.form,
        curve=first.curve,
        objectives=objectives,
        item_ids={m.objective.name: tuple(sorted(m.item_ids)) for m in found},
    )
