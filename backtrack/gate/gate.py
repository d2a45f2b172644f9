"""Does a candidate lose more than allowed against an incumbent? `gate`.

Items are compared in nested parts, in the seeded order of a search's rungs: an eighth, a quarter,
three eighths, half, three quarters, all. After each part there is a look at every undecided bound,
and nothing more is measured when the outcome is certain. Where both sides have their scores
already there is one look at all.

The chance of error is shared equally among the bounds (Bonferroni) and by `spending` among looks,
so that all claims of passing hold together with the stated confidence, and so do all of failing.

NOTE: a gate that passes errs only if a bound that is broken passes, which every bound could risk
at the full level (an intersection-union test; Berger, Technometrics 24, 1982). Rows are read one
by one, so they share it: with four bounds that takes half as many items again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from backtrack.errors import UsageError
from backtrack.gate.bounds import BoundedMean, bounded_means
from backtrack.gate.decision import Gain, outcome_of, overall
from backtrack.gate.pairs import Pair, pair_up
from backtrack.gate.spending import tails
from backtrack.records.gate import BoundResult, GateResult
from backtrack.selection.measure.items import RUNG_UNIT
from backtrack.selection.stats.items import nested_rungs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from backtrack.gate.sides import Side
    from backtrack.records.gate import GateBound

    Floats = NDArray[np.float64]
    OnProgress = Callable[[int, int, str], None]

SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)
"""Cumulative shares of the items at each look but the last."""
CONFIDENCE = 0.95


def gate(
    candidate: Side,
    incumbent: Side,
    bounds: Sequence[GateBound],
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> GateResult:
    """Compare two sides until every bound is decided, or the items are used up.

    Args:
        candidate: What may replace the incumbent.
        incumbent: What is in use.
        bounds: What the candidate may lose, or must gain.
        confidence: Of all claims of passing together, and of all of failing.
        seed: Seed of the order in which items are measured.
        on_progress: Called with items scored, items there are, and the objective.

    Raises:
        UsageError: There is no bound, a bound names what a side has not, or the sides cannot be
            compared.
        ObjectiveError: A side cannot be measured.
    """
    if not bounds:
        raise UsageError(
            "nothing is bounded. Say what may be lost or must be gained, such as "
            "`--max-drop ifeval=1`, `--max-general-drop 1` or `--min-gain gsm8k=2`."
        )
    if not 0.5 <= confidence < 1:
        raise UsageError(f"the confidence is {confidence:g}; it lies between 0.5 and 1.")
    names = _names(bounds, candidate, incumbent)
    pairs = {name: _in_parts(pair_up(name, candidate, incumbent), seed) for name in names}
    means = bounded_means(bounds, {name: pair.info for name, pair in pairs.items()})
    looks = _Looks(pairs, means, confidence, on_progress)
    looks.run()
    return GateResult(
        candidate=candidate.name,
        incumbent=incumbent.name,
        outcome=overall([result.outcome for result in looks.results]),
        confidence=confidence,
        bounds=tuple(looks.results),
        items_compared=looks.num_compared,
        items_available=sum(len(pair.item_ids) for pair in pairs.values()),
        num_looks=looks.num_looks,
    )


def _names(bounds: Sequence[GateBound], candidate: Side, incumbent: Side) -> list[str]:
    """Names of the objectives that bounds are about: those named, and all of a bounded role."""
    names = [bound.name for bound in bounds if not bound.is_role]
    roles = {bound.name for bound in bounds if bound.is_role}
    for side in (candidate, incumbent) if roles else ():
        names += [name for name, each in side.objectives.items() if each.info.role in roles]
    return list(dict.fromkeys(names))


def _in_parts(pair: Pair, seed: int) -> Pair:
    """A pair whose items are in nested order, with the number of them at each look."""
    shares = () if pair.is_recorded else SHARES
    rungs = nested_rungs(pair.item_ids, shares, seed, RUNG_UNIT, pair.clusters)
    ends = np.cumsum([len(rung) for rung in rungs])
    ordered = tuple(item_id for rung in rungs for item_id in rung)
    return replace(pair, item_ids=ordered, ends=tuple(ends.tolist()))


class _Looks:
    """Measures part by part and decides the bounds.

    Attributes:
        results: What is shown of each bound so far.
        num_looks: Looks so far.
    """

    def __init__(
        self,
        pairs: dict[str, Pair],
        means: Sequence[BoundedMean],
        confidence: float,
        on_progress: OnProgress | None,
    ) -> None:
        self._pairs = pairs
        self._means = means
        self._level = (1 - confidence) / len(means)
        self._on_progress = on_progress
        self._scores: dict[str, tuple[Floats, Floats]] = {
            name: (np.empty(0), np.empty(0)) for name in pairs
        }
        self._fractions: list[tuple[float, ...]] = [() for _ in means]
        self.num_looks = 0
        self.results: list[BoundResult] = []

    @property
    def num_compared(self) -> int:
        """Items whose scores were compared."""
        return sum(len(scores[0]) for scores in self._scores.values())

    def run(self) -> None:
        """Look until the outcome is certain or all items are in."""
        open_bounds = list(range(len(self._means)))
        found: dict[int, BoundResult] = {}
        while open_bounds:
            names = dict.fromkeys(n for i in open_bounds for n in self._means[i].shares)
            for name in names:
                self._expect(name)
            for name in names:
                self._measure(name)
            self.num_looks += 1
            found |= {i: self._result(i) for i in open_bounds}
            self.results = [found[i] for i in range(len(self._means))]
            if any(result.outcome == "fails" for result in self.results):
                return
            open_bounds = [
                i
                for i in open_bounds
                if found[i].outcome == "undecided" and self._fractions[i][-1] < 1
            ]

    def _asked(self, name: str) -> tuple[str, ...]:
        """The items of an objective that this look adds."""
        pair = self._pairs[name]
        end = pair.ends[min(self.num_looks, len(pair.ends) - 1)]
        return pair.item_ids[len(self._scores[name][0]) : end]

    def _expect(self, name: str) -> None:
        if asked := self._asked(name):
            for side in (self._pairs[name].candidate, self._pairs[name].incumbent):
                side.expect(asked)

    def _measure(self, name: str) -> None:
        """Score the items of an objective that this look adds, on both sides."""
        pair, known = self._pairs[name], self._scores[name]
        asked = self._asked(name)
        if not asked:
            return
        if self._on_progress is not None:
            total = sum(len(each.item_ids) for each in self._pairs.values())
            self._on_progress(self.num_compared, total, name)
        new = (side.scores(asked) for side in (pair.candidate, pair.incumbent))
        candidate, incumbent = (
            np.concatenate([before, scores]) for before, scores in zip(known, new, strict=True)
        )
        self._scores[name] = candidate, incumbent

    def _result(self, index: int) -> BoundResult:
        """What the items so far show of one bound."""
        mean = self._means[index]
        gain = Gain([mean.gains(n, self._pairs[n], self._scores[n]) for n in mean.shares])
        available = sum(len(self._pairs[name].item_ids) for name in mean.shares)
        fractions = (*self._fractions[index], gain.num_items / available)
        self._fractions[index] = fractions
        tail = tails(fractions, self._level)[-1]
        interval, least = gain.interval(tail), mean.bound.least_gain
        outcome = outcome_of(interval, least)
        is_open = outcome == "undecided"
        candidate, incumbent = (self._mean_score(mean, side) for side in (0, 1))
        return BoundResult(
            bound=mean.bound,
            outcome=outcome,
            unit=mean.unit,
            candidate=candidate,
            incumbent=incumbent,
            gain=interval,
            num_items=gain.num_items,
            items_to_decide=gain.items_to_decide(least, tail) if is_open else None,
        )

    def _mean_score(self, mean: BoundedMean, side: int) -> float:
        """Mean score of one side, in the unit of the bounded mean."""
        return sum(
            share * float(mean.shown(name, self._scores[name][side]).mean())
            for name, share in mean.shares.items()
        )
