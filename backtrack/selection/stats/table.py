"""From measurements to tables of scores that may be compared.

Scores are compared only under one SETTING: the same objectives down to their fingerprints, the
same items, the same form and curve. What was measured under another is left out, and counted. A
measurement may hold part of the items: those of one point add up, item by item.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from backtrack.selection.stats.bootstrap import MIN_ITEMS
from backtrack.selection.stats.estimates import complete, likeness_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point
    from backtrack.records import CurveName, Form, Measurement, ObjectiveInfo, Role, Split
    from backtrack.selection.stats.estimates import Completed

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
            and self._parts[name][0] == measurement.objective.fingerprint
            and self._parts[name][1].issuperset(measurement.item_ids)
        )


@dataclass(frozen=True)
class ScoreTable:
    """Scores of the same items at several points.

    Attributes:
        setting: What all of them share.
        points: In the order of measuring.
        origins: Who asked, by point.
        distances: From the base, [points].
        scores: By objective's name, [points, items]; NaN where not measured.
    """

    setting: Setting
    points: tuple[Point, ...]
    origins: tuple[str, ...]
    distances: Floats
    scores: dict[str, Floats]

    @cached_property
    def completed(self) -> dict[str, Completed]:
        """The scores with what is missing predicted, by objective's name."""
        # Rows after those of the points are baselines off the path, which nothing is known to be
        # like.
        num_points, num_rows = len(self.points), len(next(iter(self.scores.values())))
        likeness = np.eye(num_rows)
        on_path = [scores[:num_points] for scores in self.scores.values()]
        likeness[:num_points, :num_points] = likeness_of(self.points, on_path)
        return {name: complete(scores, likeness) for name, scores in self.scores.items()}

    @cached_property
    def means(self) -> dict[str, Floats]:
        """Mean score over all items by objective's name, [points]; estimated where some miss."""
        return {name: found.means for name, found in self.completed.items()}

    @cached_property
    def shares(self) -> Floats:
        """Share of the items each point was measured on, the least over objectives, [points]."""
        shares = [np.isfinite(scores).mean(axis=1) for scores in self.scores.values()]
        least: Floats = np.min(shares, axis=0)
        return least

    def column(self, point: Point) -> int:
        """Where a point stands.

        Raises:
            ValueError: It is not in the table.
        """
        return self.points.index(point.canonical)

    def knows(self, points: Iterable[Point]) -> bool:
        """Whether the points are there, measured on some items at least."""
        return {point.canonical for point in points} <= set(self.points)

    def holds(self, points: Iterable[Point]) -> bool:
        """Whether the points are there, measured on all items."""
        whole = {p for p, share in zip(self.points, self.shares, strict=True) if share == 1}
        return {point.canonical for point in points} <= whole


@dataclass
class _Row:
    """What was measured at one point: scores by objective's name and item."""

    origin: str
    distance: float
    scores: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))


def tabulate(setting: Setting, measurements: Iterable[Measurement]) -> ScoreTable:
    """The points whose every objective was measured under `setting`; later scores win."""
    found: dict[Point, _Row] = {}
    for m in measurements:
        if setting.fits(m):
            row = found.setdefault(m.point.canonical, _Row(m.origin, m.distance))
            row.scores[m.objective.name].update(zip(m.item_ids, m.scores, strict=True))
    names = [objective.name for objective in setting.objectives]
    rows = {p: row for p, row in found.items() if _is_usable(row, names)}
    return ScoreTable(
        setting=setting,
        points=tuple(rows),
        origins=tuple(row.origin for row in rows.values()),
        distances=np.array([row.distance for row in rows.values()]),
        scores={name: _matrix(rows.values(), name, setting.item_ids[name]) for name in names},
    )


def _is_usable(row: _Row, names: Sequence[str]) -> bool:
    return all(len(row.scores[name]) >= MIN_ITEMS for name in names)


def _matrix(rows: Iterable[_Row], name: str, item_ids: Sequence[str]) -> Floats:
    scores = [[row.scores[name].get(i, math.nan) for i in item_ids] for row in rows]
    return np.array(scores, dtype=np.float64).reshape(len(scores), len(item_ids))


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
    items: Mapping[str, tuple[str, ...]],
) -> Setting | None:
    """The latest setting on record under which every objective was measured at both ends.

    Nothing is built for this: it trusts that the objectives on record are those now asked for.

    Args:
        measurements: In the order of measuring.
        split: Which items.
        wanted: The objectives asked for.
        ends: Base and final checkpoint.
        forms: Required `form` and `curve`, where they are known.
        items: Whole sets of items by their names, where measurements hold parts of them.
    """
    fitting = [
        m
        for m in measurements
        if m.split == split and all(getattr(m, key) == value for key, value in forms.items())
    ]
    ways = dict.fromkeys((m.form, m.curve) for m in reversed(fitting))
    for form, curve in ways:
        on_way = [m for m in fitting if (m.form, m.curve) == (form, curve)]
        latest = [_latest(on_way, each, ends, items) for each in wanted]
        found = [m for m in latest if m is not None]
        if len(found) == len(wanted):
            return _setting_of(found, wanted)
    return None


def _latest(
    measurements: Sequence[Measurement],
    wanted: Wanted,
    ends: Sequence[Point],
    items: Mapping[str, tuple[str, ...]],
) -> tuple[Measurement, tuple[str, ...]] | None:
    """A measurement, and all items of the latest set of which both ends have some."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for m in measurements:
        same = wanted.fingerprint in (None, m.objective.fingerprint)
        if m.objective.name == wanted.name and same and m.point.canonical in ends:
            key = m.objective.fingerprint, m.whole or items_digest(m.item_ids)
            groups[key] = [*groups.pop(key, []), m]
    for (_, whole), group in reversed(groups.items()):
        known = {i for m in group for i in m.item_ids}
        all_items = items.get(whole) or (tuple(known) if items_digest(known) == whole else None)
        if all_items and set(ends) <= {m.point.canonical for m in group}:
            return group[-1], all_items
    return None


def items_digest(item_ids: Iterable[str]) -> str:
    """Names a set of items."""
    return hashlib.sha256("\n".join(sorted(item_ids)).encode()).hexdigest()[:16]


def _setting_of(
    found: Sequence[tuple[Measurement, tuple[str, ...]]], wanted: Sequence[Wanted]
) -> Setting:
    first = found[0][0]
    objectives = tuple(
        m.objective.model_copy(update={"role": each.role, "weight": each.weight})
        for (m, _), each in zip(found, wanted, strict=True)
    )
    return Setting(
        split=first.split,
        form=first.form,
        curve=first.curve,
        objectives=objectives,
        item_ids={m.objective.name: tuple(sorted(items)) for m, items in found},
    )
