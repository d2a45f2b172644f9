"""Check the gate's error rates and what it costs, on items drawn with a known drop.

    python tests/bench/gate.py [--draws 200000]

Candidate and incumbent answer the same items, right or wrong. The candidate loses some of the
incumbent's right answers and wins some of its wrong ones, so that the true drop is 0, half of the
bound, the bound, or twice it; `churn` is the share of items that change hands besides. The items
are independent, so how many of each part are lost and won is all that an interval rests on: those
numbers are drawn, and decided all at once by the gate's intervals and levels. Some draws of items
go both ways, through `gate` itself too, which must say the same.

pass, fail   share of draws with that outcome, in %; the rest are undecided. A pass where the drop
             is more than the bound is false, a fail where it is less; at the bound both are
items        items compared, in % of all: mean over draws
eighth       share of draws, in %, that end at the first look
at once      the same for one look at all items, from scores that are recorded
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from backtrack.gate import gate
from backtrack.gate.gate import CONFIDENCE, SHARES
from backtrack.gate.sides import ItemScores, RecordedScores, RecordedSide
from backtrack.gate.spending import tails
from backtrack.records import ObjectiveInfo
from backtrack.records.gate import GateBound
from backtrack.selection.measure.items import RUNG_UNIT
from backtrack.selection.stats.items import nested_rungs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

NUM_CHECKED = 5
"""Draws of a line that go through `gate` itself."""


class Unmeasured(RecordedScores):
    """Scores that are there, of a side that says it must measure them."""

    is_recorded = False


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    Attributes:
        num_items: Items an objective.
        num_bounds: Objectives, each with a bound.
        bound: Largest drop allowed, in points.
        churn: Share of items that change hands besides the drop.
        drop: True drop of every objective, in points.
    """

    num_items: int
    num_bounds: int = 1
    bound: float = 5.0
    churn: float = 0.1
    drop: float = 0.0

    @property
    def item_ids(self) -> tuple[str, ...]:
        return tuple(f"task/{i:05d}" for i in range(self.num_items))

    @property
    def chances(self) -> tuple[float, float, float]:
        """Of an item: to be lost, won, or neither."""
        lost, won = self.churn / 2 + self.drop / 100, self.churn / 2
        return lost, won, 1 - lost - won

    @property
    def _seed(self) -> list[int]:
        return [self.num_items, self.num_bounds,
                *(round(1000 * v) for v in (self.churn, self.drop))]  # fmt: skip

    def gains(self, num_draws: int) -> Floats:
        """What each item gains, -1, 0 or 1, in the order of measuring, [draws, bounds, items]."""
        size = num_draws, self.num_bounds, self.num_items
        uniform = np.random.default_rng(self._seed).random(size)
        lost, won, _ = self.chances
        return np.asarray((uniform > 1 - won) * 1.0 - (uniform < lost))

    def counts(self, num_draws: int, ends: Ints) -> Ints:
        """Items lost and won up to each look, [draws, bounds, looks, 2]."""
        rng = np.random.default_rng(self._seed)
        parts = np.diff(ends, prepend=0)
        size = num_draws, self.num_bounds, len(parts)
        return rng.multinomial(parts, self.chances, size)[..., :2].cumsum(axis=2)


def counted(gains: Floats, ends: Ints) -> Ints:
    """Items lost and won up to each look, [draws, bounds, looks, 2]."""
    both = np.stack([gains < 0, gains > 0], axis=-1).cumsum(axis=2)
    return np.asarray(both[:, :, ends - 1])


@dataclass(frozen=True)
class Decided:
    """Draws of a line.

    Attributes:
        outcome: 1 passes, -1 fails, 0 undecided, [draws].
        spent: Share of the items compared, [draws].
    """

    outcome: Ints
    spent: Floats


def looks(cell: Cell, shares: tuple[float, ...]) -> Ints:
    """Number of items of a bound at each look."""
    return np.cumsum([len(r) for r in nested_rungs(cell.item_ids, shares, 0, RUNG_UNIT)])


def decide(cell: Cell, counts: Ints, ends: Ints) -> Decided:
    """Decide all draws from the items lost and won up to each look."""
    levels = tails(tuple((ends / ends[-1]).tolist()), (1 - CONFIDENCE) / cell.num_bounds)
    shown = np.zeros(counts.shape[:2], dtype=np.int64)
    spent = np.zeros(counts.shape[:2])
    is_over = np.zeros(len(counts), dtype=bool)
    for look, (end, level) in enumerate(zip(ends, levels, strict=True)):
        is_open = (shown == 0) & ~is_over[:, None]
        spent[is_open] = end
        shown[is_open] = _shown(counts[is_open, look], int(end), -cell.bound / 100, level)
        is_over |= (shown < 0).any(axis=1)
    outcome = np.where((shown < 0).any(axis=1), -1, (shown > 0).all(axis=1))
    return Decided(outcome.astype(np.int64), spent.mean(axis=1) / ends[-1])


def _shown(counts: Ints, num: int, least: float, level: float) -> Ints:
    """1 where the interval of lost and won items lies above `least`, -1 where below, [rows]."""
    lost, won = counts.T
    mean, quantile = (won - lost) / num, stdtrit(num - 1, 1 - level)
    variance = ((lost + won) / num - mean**2) / (num - 1) + 2 / (num + 2) ** 2
    cubes = won * (1 - mean) ** 3 - lost * (1 + mean) ** 3 - (num - lost - won) * mean**3
    shift = quantile**2 * cubes / num**3 / (2 * variance)
    reach = np.sqrt(shift**2 + quantile**2 * variance) + 0.5 / num
    middle = mean + shift
    return np.where(middle - reach >= least, 1, -1 * (middle + reach < least))


def by_gate(cell: Cell, gains: Floats, kind: type[RecordedScores]) -> tuple[int, float]:
    """Outcome and share of items of one draw, by `gate` itself."""
    order = [i for rung in nested_rungs(cell.item_ids, SHARES, 0, RUNG_UNIT) for i in rung]
    sides: list[dict[str, ItemScores]] = [{}, {}]
    for number, of_bound in enumerate(gains):
        name = f"task{number}"
        info = ObjectiveInfo(name=name, role="general", kind="python", direction="maximize",
                             unit="fraction", fingerprint=name)  # fmt: skip
        for side, scores in zip(sides, (of_bound == 1, of_bound == -1), strict=True):
            side[name] = kind(info, dict(zip(order, scores.astype(float).tolist(), strict=True)))
    bounds = [GateBound(kind="max_drop", name=name, number=cell.bound) for name in sides[0]]
    found = gate(RecordedSide("candidate", sides[0]), RecordedSide("incumbent", sides[1]), bounds)
    outcome = {"passes": 1, "fails": -1, "undecided": 0}[found.outcome]
    return outcome, found.items_compared / found.items_available


def show(cell: Cell, num_draws: int) -> None:
    """Print one line of the table, after checking some draws."""
    gains = cell.gains(NUM_CHECKED)
    cells: list[float] = []
    ways: tuple[tuple[Any, tuple[float, ...]], ...] = ((Unmeasured, SHARES), (RecordedScores, ()))
    for kind, shares in ways:
        ends = looks(cell, shares)
        found = decide(cell, counted(gains, ends), ends)
        for number, each in enumerate(gains):
            said = by_gate(cell, each, kind)
            assert said[0] == found.outcome[number], (cell, number)
            assert abs(said[1] - found.spent[number]) < 1e-9, (cell, number)
        found = decide(cell, cell.counts(num_draws, ends), ends)
        cells += [(found.outcome == outcome).mean() for outcome in (1, -1)]
        if shares:
            cells += [found.spent.mean(), (found.spent < SHARES[0] + 0.05).mean()]
    line = "".join(f"{100 * value:9.2f}" for value in cells)
    print(f"{cell.num_items:6d}{cell.num_bounds:7d}{100 * cell.churn:7.0f}{cell.bound:7.1f}"
          f"{cell.drop:7.1f}{line}", flush=True)  # fmt: skip


CELLS = (
    Cell(100),
    Cell(400),
    Cell(400, churn=0.02),
    Cell(1600),
    Cell(1600, bound=2.0),
    Cell(1600, bound=1.0, churn=0.02),
    Cell(1600, num_bounds=4),
    Cell(6400, bound=2.0),
    Cell(6400),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=20000)
    num_draws = parser.parse_args().draws
    begin = time.perf_counter()
    print(f"{'':34s}{'part by part':^36s}{'at once':^18s}")
    names = ("pass", "fail", "items", "eighth", "pass", "fail")
    print(f"{'items':>6s}{'bounds':>7s}{'churn':>7s}{'bound':>7s}{'drop':>7s}"
          + "".join(f"{name:>9s}" for name in names))  # fmt: skip
    for cell in CELLS:
        for share in (0.0, 0.5, 1.0, 2.0):
            show(replace(cell, drop=share * cell.bound), num_draws)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
