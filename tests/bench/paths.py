"""Simulated paths with known truth: binary items, paired over points as in recorded runs.

A path's utility over its base, at the weight it is made for, is `gain` times a SHAPE of the
strength. Target and general both have that gain; along the path the target gains and general loses
`TRADE` points more, in the proportion that leaves the utility as it is. An earlier checkpoint at
alpha 1 is as strong as its share of the steps, to the power `STEP_POWER`.

An item is right at a point where its latent score lies below the quantile of the point's rate.
Latent scores of an item are correlated over points, the more the nearer: the deviation of a
difference of two points is 0.36 (alphas 0.1 apart) to 0.48 (the ends), as in tables recorded by
`record_tables.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

from backtrack.point import Point
from backtrack.recipe import SearchSection
from backtrack.records import ROLES, ObjectiveInfo
from backtrack.selection.search.space import anchors
from backtrack.selection.stats.table import ScoreTable, SplitSetting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backtrack.records import Role

    Floats = NDArray[np.float64]

STEPS = (20, 40, 60, 80, 100)
FINAL = Point(step=STEPS[-1])
POINTS = anchors(STEPS, SearchSection())
BASE_RATES: dict[Role, float] = {"target": 0.45, "general": 0.6}
TRADE = 10.0
STEP_POWER = 0.5
SHARED = 0.6
"""Share of an item's latent variance that it has in common with its cluster."""

SHAPES: dict[str, Callable[[Floats], Floats]] = {
    "inside": lambda x: 1 - ((x - 0.6) / 0.6) ** 2,
    "saturating": lambda x: 1 - (1 - x) ** 3,
    "overshoot": lambda x: np.where(
        x < 0.3, 1 - ((x - 0.3) / 0.3) ** 2, 1 - 2 * ((x - 0.3) / 0.7) ** 2
    ),
    "cliff": lambda x: np.where(x <= 0.8 + 1e-9, 1 - (1 - x / 0.8) ** 2, -2.0),
    "spike": lambda x: np.exp(-(((x - 0.5) / 0.15) ** 2)),
    "flat": lambda x: 0 * x,
    "falling": lambda x: -(x**1.5),
}
"""Utility by strength, as a share of the gain; 0 at the base."""
BASE_IS_BEST = ("flat", "falling")


@dataclass(frozen=True)
class Path:
    """A path with known truth.

    Attributes:
        shape: Name of its shape.
        gain: Points of utility by which its best point is above the base.
        weight: Weight at which this holds.
        trade: What target and general trade at full strength, in points.
    """

    shape: str
    gain: float
    weight: float
    trade: float = TRADE

    @property
    def best(self) -> float:
        """Utility over the base of the best strength, in points."""
        return float(self.gain * SHAPES[self.shape](np.linspace(0, 1, 1001)).max())

    def utilities(self, points: Sequence[Point] = POINTS) -> Floats:
        """True utility over the base, in points, [points]."""
        return np.asarray(self.gain * SHAPES[self.shape](strengths(points)))

    def rates(self, role: Role, points: Sequence[Point] = POINTS) -> Floats:
        """True rate of right answers of a role, [points]."""
        trade = self.trade * strengths(points) ** 2
        change = (1 - self.weight) * trade if role == "target" else -self.weight * trade
        rates = BASE_RATES[role] + (self.utilities(points) + change) / 100
        return np.clip(rates, 0.01, 0.99)

    def draw(
        self, num_items: int, seed: int, points: Sequence[Point] = POINTS, per_cluster: int = 1
    ) -> ScoreTable:
        """Scores of so many selection items a role."""
        scores: dict[str, Floats] = {}
        for number, role in enumerate(ROLES):
            # Each path has items of its own: shared luck would not average out over paths.
            own = zlib.crc32(f"{self.shape}/{self.gain}/{self.weight}".encode())
            rng = np.random.default_rng([seed, number, num_items, own])
            latent = _root(tuple(points)) @ normals(rng, len(points), num_items, per_cluster)
            scores[role] = (latent < ndtri(self.rates(role, points))[:, None]).astype(float)
        ids = item_ids(num_items)
        clusters = {name: clusters_of(of, per_cluster) for name, of in ids.items()}
        setting = SplitSetting("selection", "attached", "native", INFOS, ids, clusters=clusters)
        origins = ("anchor",) * len(points)
        return ScoreTable(setting, tuple(points), origins, strengths(points), scores)


INFOS = tuple(
    ObjectiveInfo.model_validate(
        {
            "name": role,
            "role": role,
            "kind": "examples",
            "direction": "maximize",
            "unit": "fraction",
            "fingerprint": role,
        }
    )
    for role in ROLES
)


def item_ids(num_items: int) -> dict[str, tuple[str, ...]]:
    """Ids of the items by objective's name."""
    return {role: tuple(f"{role}/{i:05d}" for i in range(num_items)) for role in ROLES}


def clusters_of(ids: Sequence[str], per_cluster: int) -> dict[str, str]:
    """Cluster of each item: so many consecutive ones share it."""
    if per_cluster == 1:
        return {}
    return {each: ids[i // per_cluster * per_cluster] for i, each in enumerate(ids)}


def normals(
    rng: np.random.Generator, num_rows: int, num_items: int, per_cluster: int = 1
) -> Floats:
    """Draw normal numbers; a cluster shares `SHARED` of their variance, [rows, items]."""
    own = rng.standard_normal((num_rows, num_items))
    if per_cluster == 1:
        return own
    shared = rng.standard_normal((num_rows, -(-num_items // per_cluster)))
    by_item = shared.repeat(per_cluster, axis=1)[:, :num_items]
    return np.asarray(np.sqrt(SHARED) * by_item + np.sqrt(1 - SHARED) * own)


def strengths(points: Sequence[Point]) -> Floats:
    """Strength of each point: alpha, less at an earlier checkpoint."""
    return np.array([p.alpha * (p.step / STEPS[-1]) ** STEP_POWER for p in points])


@lru_cache
def _root(points: tuple[Point, ...]) -> Floats:
    """Root of the correlation of an item's latent scores over points, [points, points]."""
    strength = strengths(points)
    steps = np.array([p.step if not p.is_base else STEPS[-1] for p in points])
    gaps = np.abs(strength[:, None] - strength)
    decay = np.exp(-gaps / 0.5) * np.where(steps[:, None] != steps, 0.9, 1.0)
    correlation = 0.7 + 0.25 * decay
    np.fill_diagonal(correlation, 1.0)
    root: Floats = np.linalg.cholesky(correlation)
    return root
