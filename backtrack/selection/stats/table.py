"""Tables of comparable scores, made of measurements.

Scores can be compared only under one setting: all reading is of the lines that name it and the
checkpoints as they are now. Other lines are left out, and reported. A measurement may hold some
of the items only: all measurements of a point are merged.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from backtrack.selection.stats.estimates import cluster_scores, estimate_means, fit_correlations
from backtrack.selection.stats.items import MIN_ITEMS, NO_CLUSTERS, clusters_of
from backtrack.selection.stats.utility import make_yardstick, to_points

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point
    from backtrack.records import CurveName, Form, Measurement, ObjectiveInfo, Setting, Split
    from backtrack.records.selection import Yardstick
    from backtrack.selection.stats.estimates import ScoreEstimates

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SplitSetting:
    """A setting's part for one split, and the checkpoints as they are now.

    Attributes:
        split: Which of the items: `selection` or `report`.
        form: Backend that holds the model at its points.
        curve: How weights move with alpha.
        objectives: The objectives, with their roles and weights now.
        item_ids: All items of the split by objective's name, sorted.
        clusters: Cluster by item, of the objectives whose items share something, by name.
        digests: What measurements name the setting by, for each objective's name.
        checkpoints: Digest of each checkpoint by step.
    """

    split: Split
    form: Form
    curve: CurveName
    objectives: tuple[ObjectiveInfo, ...]
    item_ids: dict[str, tuple[str, ...]]
    digests: Mapping[str, str] = field(default_factory=dict)
    checkpoints: Mapping[int, str] = field(default_factory=dict)
    clusters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        setting: Setting,
        split: Split,
        objectives: tuple[ObjectiveInfo, ...],
        checkpoints: Mapping[int, str],
    ) -> SplitSetting:
        """One split's part of a setting, with the objectives' roles and weights as given."""
        return cls(
            split=split,
            form=setting.form,
            curve=setting.curve,
            objectives=objectives,
            item_ids=setting.items[split],
            digests=setting.digests,
            checkpoints=checkpoints,
            clusters=setting.clusters,
        )

    @cached_property
    def item_clusters(self) -> dict[str, tuple[str, ...]]:
        """Cluster of each of `item_ids` by objective's name; the item where it shares nothing."""
        return {
            name: clusters_of(ids, self.clusters.get(name, NO_CLUSTERS))
            for name, ids in self.item_ids.items()
        }

    @cached_property
    def _items(self) -> dict[str, frozenset[str]]:
        return {name: frozenset(ids) for name, ids in self.item_ids.items()}

    def checkpoint_of(self, point: Point) -> str:
        """What measurements of a point name its checkpoint by; empty at the base."""
        return "" if point.is_base else self.checkpoints.get(point.step, "missing")

    def fits(self, measurement: Measurement) -> bool:
        """Whether a measurement was taken under this setting, of the checkpoint as it is now."""
        m = measurement
        name = m.objective.name
        return (
            m.split == self.split
            and m.setting == self.digests.get(name, "none")
            and m.checkpoint == self.checkpoint_of(m.point)
            and self._items[name].issuperset(m.item_ids)
        )


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

    setting: SplitSetting
    points: tuple[Point, ...]
    origins: tuple[str, ...]
    distances: Floats
    scores: dict[str, Floats]

    @cached_property
    def yardsticks(self) -> dict[str, Yardstick]:
        """How the scores of each objective's items become points."""
        return {o.name: make_yardstick(o) for o in self.setting.objectives}

    @cached_property
    def estimates(self) -> dict[str, ScoreEstimates]:
        """Estimates of mean scores over all items, by objective's name."""
        return {name: self._estimate(name, scores) for name, scores in self.scores.items()}

    @cached_property
    def in_points(self) -> dict[str, ScoreEstimates]:
        """Estimates of mean points over all items, by objective's name."""
        return {name: self._in_points(name, y) for name, y in self.yardsticks.items()}

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

    @cached_property
    def _correlations(self) -> Floats:
        # No correlation is assumed between a baseline that is no point and anything else.
        num_points, num_rows = len(self.points), len(next(iter(self.scores.values())))
        correlations = np.eye(num_rows)
        at_points = [self._by_cluster(n, s)[:num_points] for n, s in self.scores.items()]
        correlations[:num_points, :num_points] = fit_correlations(self.points, at_points)
        return correlations

    def _by_cluster(self, name: str, scores: Floats) -> Floats:
        return cluster_scores(scores, self.setting.item_clusters[name])

    def _estimate(self, name: str, scores: Floats) -> ScoreEstimates:
        return estimate_means(scores, self._correlations, self._by_cluster(name, scores))

    def _in_points(self, name: str, yardstick: Yardstick) -> ScoreEstimates:
        if yardstick.zero is None:
            return self._estimate(name, to_points(self.scores[name], yardstick))
        offset, top = to_points(np.array([0.0, 1.0]), yardstick)
        return self.estimates[name].scaled(float(top - offset), float(offset))

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


def tabulate(setting: SplitSetting, measurements: Iterable[Measurement]) -> ScoreTable:
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


def points_left_out(
    setting: SplitSetting, measurements: Iterable[Measurement]
) -> tuple[Point, ...]:
    """List points measured on this split only under another setting, or not on every objective."""
    measurements = list(measurements)
    in_table = set(tabulate(setting, measurements).points)
    points = dict.fromkeys(m.point.canonical for m in measurements if m.split == setting.split)
    return tuple(point for point in points if point not in in_table)
