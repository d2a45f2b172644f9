"""Tables of comparable scores, made of measurements.

Scores can be compared only under one SETTING: the same objectives down to their fingerprints, the
same items, the same form and curve. Measurements under another setting are left out, and reported.
A measurement may hold some of the items only: all measurements of a point are merged.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from backtrack.selection.stats.estimates import estimate_means, fit_correlations
from backtrack.selection.stats.items import MIN_ITEMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point
    from backtrack.records import CurveName, Form, Measurement, ObjectiveInfo, Split
    from backtrack.selection.stats.estimates import ScoreEstimates

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """What decides scores besides the point; scores of two settings are not comparable.

    Attributes:
        split: Which of the items: `selection` or `report`.
        form: Backend that held the model at its points.
        curve: How weights move with alpha.
        objectives: The objectives, with roles and weights.
        item_ids: All items of the split by objective's name, sorted.
    """

    split: Split
    form: Form
    curve: CurveName
    objectives: tuple[ObjectiveInfo, ...]
    item_ids: dict[str, tuple[str, ...]]

    @cached_property
    def _fingerprints_and_items(self) -> dict[str, tuple[str, frozenset[str]]]:
        return {o.name: (o.fingerprint, frozenset(self.item_ids[o.name])) for o in self.objectives}

    def fits(self, measurement: Measurement) -> bool:
        """Whether a measurement was taken under this setting."""
        m = measurement
        if (m.split, m.form, m.curve) != (self.split, self.form, self.curve):
            return False
        if m.objective.name not in self._fingerprints_and_items:
            return False
        fingerprint, item_ids = self._fingerprints_and_items[m.objective.name]
        return fingerprint == m.objective.fingerprint and item_ids.issuperset(m.item_ids)


@dataclass(frozen=True)
class ScoreTable:
    """Scores of the same items at several points.

    Attributes:
        setting: The setting of all scores.
        points: The points, in the order of measuring.
        origins: What requested each point, see `Measurement.origin`.
        distances: Distance of each point's weights from the base, [points].
        scores: By objective's name, [points, items]; NaN where not measured. Rows beyond the
            points are baselines that are no points.
    """

    setting: Setting
    points: tuple[Point, ...]
    origins: tuple[str, ...]
    distances: Floats
    scores: dict[str, Floats]

    @cached_property
    def estimates(self) -> dict[str, ScoreEstimates]:
        """Estimates of mean scores over all items, by objective's name."""
        # No correlation is assumed between a baseline that is no point and anything else.
        num_points, num_rows = len(self.points), len(next(iter(self.scores.values())))
        correlations = np.eye(num_rows)
        at_points = [scores[:num_points] for scores in self.scores.values()]
        correlations[:num_points, :num_points] = fit_correlations(self.points, at_points)
        return {n: estimate_means(scores, correlations) for n, scores in self.scores.items()}

    @cached_property
    def means(self) -> dict[str, Floats]:
        """Mean score over all items by objective's name, [points]; see `estimates`."""
        return {name: estimates.means for name, estimates in self.estimates.items()}

    @cached_property
    def shares(self) -> Floats:
        """Share of the items each point was measured on, lowest over objectives, [points]."""
        shares = [np.isfinite(scores).mean(axis=1) for scores in self.scores.values()]
        lowest: Floats = np.min(shares, axis=0)
        return lowest

    def column(self, point: Point) -> int:
        """Return the index of a point.

        Raises:
            ValueError: The point is not in the table.
        """
        return self.points.index(point.canonical)

    def knows(self, points: Iterable[Point]) -> bool:
        """Whether the table has all these points, measured on some items at least."""
        return {point.canonical for point in points} <= set(self.points)

    def holds(self, points: Iterable[Point]) -> bool:
        """Whether the table has all these points, measured on all items."""
        whole = {p for p, share in zip(self.points, self.shares, strict=True) if share == 1}
        return {point.canonical for point in points} <= whole


@dataclass
class _Row:
    """Measurements of one point: scores by objective's name and item id."""

    origin: str
    distance: float
    scores: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))


def tabulate(setting: Setting, measurements: Iterable[Measurement]) -> ScoreTable:
    """Make the table of points with every objective measured under `setting`; later scores win."""
    rows: dict[Point, _Row] = {}
    for m in measurements:
        if setting.fits(m):
            row = rows.setdefault(m.point.canonical, _Row(m.origin, m.distance))
            row.scores[m.objective.name].update(zip(m.item_ids, m.scores, strict=True))
    names = [objective.name for objective in setting.objectives]
    rows = {point: row for point, row in rows.items() if _has_all(row, names)}
    return ScoreTable(
        setting=setting,
        points=tuple(rows),
        origins=tuple(row.origin for row in rows.values()),
        distances=np.array([row.distance for row in rows.values()]),
        scores={name: _matrix(rows.values(), name, setting.item_ids[name]) for name in names},
    )


def _has_all(row: _Row, names: Sequence[str]) -> bool:
    return all(len(row.scores[name]) >= MIN_ITEMS for name in names)


def _matrix(rows: Iterable[_Row], name: str, item_ids: Sequence[str]) -> Floats:
    scores = [[row.scores[name].get(i, math.nan) for i in item_ids] for row in rows]
    return np.array(scores, dtype=np.float64).reshape(len(scores), len(item_ids))


def points_left_out(setting: Setting, measurements: Iterable[Measurement]) -> tuple[Point, ...]:
    """List points measured on this split only under another setting, or not on every objective."""
    measurements = list(measurements)
    in_table = set(tabulate(setting, measurements).points)
    points = dict.fromkeys(m.point.canonical for m in measurements if m.split == setting.split)
    return tuple(point for point in points if point not in in_table)
