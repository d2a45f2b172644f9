"""Cells of `coverage.py` with known truth: rates, numbers of items, clusters, unequal objectives.

An item is right at a point where its latent score lies below the quantile of the point's rate. Of
the latent variance three quarters are the same at all points. Items of a cluster share
`paths.SHARED` of it. An answer in parts is the mean of four samples, to which an item's latent
score adds seven tenths of the variance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.special import ndtri

from backtrack.point import Point
from backtrack.records.selection import Constraints
from backtrack.selection.choice.candidates import choose_point
from backtrack.selection.stats.comparisons import differences, report_rows
from backtrack.selection.stats.scores import RoleScores
from backtrack.selection.stats.table import ScoreTable, SplitSetting
from tests.bench import paths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from backtrack.records import ObjectiveInfo, Role

    Floats = NDArray[np.float64]

CHOSEN = Point(step=paths.STEPS[-1], alpha=0.5)
POINTS = (Point.base(), CHOSEN, paths.FINAL)
NUM_ITEMS = (50, 100, 200)
CLUSTER_SIZES = (1, 5)
NUM_RESAMPLES = 1000
EQUAL = paths.Path("flat", 0.0, 0.5, trade=0.0)
RATES = (
    (0.01, 0.01, 0.01),
    (0.01, 0.03, 0.05),
    (0.05, 0.05, 0.05),
    (0.3, 0.3, 0.3),
    (0.3, 0.4, 0.45),
    (0.5, 0.55, 0.5),
    (0.97, 0.99, 0.98),
)
"""True rates at base, chosen point and final checkpoint."""


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    Attributes:
        rates: True rates at base, chosen point and final checkpoint.
        num_items: Items by objective's name; `aime` and `gsm8k` share the target.
        per_cluster: Items a cluster.
        answers: Right or wrong, or a mean of four samples.
    """

    rates: tuple[float, float, float]
    num_items: tuple[tuple[str, int], ...]
    per_cluster: int = 1
    answers: Literal["binary", "parts"] = "binary"

    @property
    def infos(self) -> tuple[ObjectiveInfo, ...]:
        roles: dict[str, Role] = {name: "target" for name, _ in self.num_items}
        roles["general"] = "general"
        template = paths.INFOS[0]
        return tuple(
            template.model_copy(update={"name": name, "role": role, "fingerprint": name})
            for name, role in roles.items()
        )

    def setting(self) -> SplitSetting:
        ids = {n: tuple(f"{n}/{i:05d}" for i in range(num)) for n, num in self.num_items}
        clusters = {name: paths.clusters_of(of, self.per_cluster) for name, of in ids.items()}
        return SplitSetting("report", "attached", "native", self.infos, ids, clusters=clusters)

    def draw(self, seed: int) -> ScoreTable:
        """Scores at base, chosen point and final checkpoint."""
        rng = np.random.default_rng([seed, self.per_cluster, len(self.answers)])
        scores = {name: self._scores(rng, num) for name, num in self.num_items}
        origins = ("report",) * len(POINTS)
        return ScoreTable(self.setting(), POINTS, origins, paths.strengths(POINTS), scores)

    def _scores(self, rng: np.random.Generator, num: int) -> Floats:
        same, own = (paths.normals(rng, n, num, self.per_cluster) for n in (1, len(POINTS)))
        latent = np.sqrt(0.75) * same + np.sqrt(0.25) * own
        bars = ndtri(np.array(self.rates))[:, None]
        if self.answers == "binary":
            return np.asarray(latent < bars, dtype=float)
        samples = [
            np.sqrt(0.7) * latent + np.sqrt(0.3) * rng.standard_normal(latent.shape) < bars
            for _ in range(4)
        ]
        return np.asarray(np.mean(samples, axis=0))


@dataclass(frozen=True)
class Found:
    """Shares over draws of a cell.

    Attributes:
        own: Intervals of the chosen point's target that hold the truth.
        gaps: Intervals of differences, in target and utility, that hold it.
        claims: Draws in which a difference from base or final checkpoint is claimed.
    """

    own: float
    gaps: float
    claims: float

    @classmethod
    def of(cls, cell: Cell, num_seeds: int, *, knows_clusters: bool = True) -> Found:
        own, gaps, claims = list[bool](), list[bool](), list[bool]()
        base, chosen, final = (100 * rate for rate in cell.rates)
        for seed in range(num_seeds):
            table = cell.draw(seed)
            if not knows_clusters:
                table = replace(table, setting=replace(table.setting, clusters={}))
            weighted = RoleScores(table, seed % 8, NUM_RESAMPLES).at(0.5)
            row = report_rows(weighted, {"chosen": CHOSEN})["chosen"]
            own.append(row.target.low <= chosen <= row.target.high)
            found = differences(weighted, CHOSEN, paths.FINAL)
            claims.append(any(gap.is_clear for gap in found))
            for gap, other in zip(found, (base, final), strict=True):
                for each in (gap.target, gap.utility):
                    gaps.append(each.low <= chosen - other <= each.high)
        return cls(*(100 * float(np.mean(flags)) for flags in (own, gaps, claims)))

    def __str__(self) -> str:
        return f"{self.own:6.1f} {self.gaps:6.1f} {self.claims:6.1f}"


def cells() -> Iterator[tuple[str, Cell]]:
    """Every cell with its name."""
    for rates, num, size in product(RATES, NUM_ITEMS, CLUSTER_SIZES):
        yield f"{num}", Cell(rates, (("target", num), ("general", num)), size)
    for rates, num, size in product((RATES[0], RATES[4]), NUM_ITEMS, CLUSTER_SIZES):
        yield f"{num} in parts", Cell(rates, (("target", num), ("general", num)), size, "parts")
    for rates in RATES:
        yield "15 + 200", Cell(rates, (("aime", 15), ("gsm8k", 200), ("general", 200)))


def show_cells(num_seeds: int) -> None:
    """Coverage and claims by cell, and with clusters also as if nobody had named them."""
    print(f"known truth, {num_seeds} draws a line: own target, differences, claims, in %")
    print(f"{'true rates':<20} {'items':<13} {'a cluster':>9}  {'':20}  without `cluster`")
    for name, cell in cells():
        rates = " ".join(f"{rate:g}" for rate in cell.rates)
        line = f"{rates:<20} {name:<13} {cell.per_cluster:9d}  {Found.of(cell, num_seeds)}"
        if cell.per_cluster > 1:
            line += f"  {Found.of(cell, num_seeds, knows_clusters=False)}"
        print(line, flush=True)


def claims_of_equals(num_items: int, per_cluster: int, seed: int) -> tuple[bool, bool]:
    """Whether a whole choice among equal points claims a difference, and a winner."""
    table = EQUAL.draw(num_items, seed, per_cluster=per_cluster)
    scores = RoleScores(table, seed)
    chosen = choose_point(scores, paths.FINAL, 0.5, Constraints()).chosen
    points = tuple(dict.fromkeys([Point.base(), chosen, paths.FINAL]))
    report = EQUAL.draw(num_items, seed + 1_000_000, points, per_cluster=per_cluster)
    weighted = RoleScores(report, seed % 8).at(0.5)
    clear = [gap for gap in differences(weighted, chosen, paths.FINAL) if gap.is_clear]
    return bool(clear), any(gap.utility.estimate > 0 for gap in clear)


def show_equals(num_seeds: int) -> None:
    """False claims and winners where all points are equal, by items and clusters."""
    print("all points equal, whole choices: claims and winners, in %")
    for num_items, size in product(NUM_ITEMS, CLUSTER_SIZES):
        found = [claims_of_equals(num_items, size, seed) for seed in range(num_seeds)]
        claims, wins = 100 * np.mean(found, axis=0)
        print(f"  {num_items:4d} items, {size} a cluster  {claims:5.1f} {wins:5.1f}", flush=True)
