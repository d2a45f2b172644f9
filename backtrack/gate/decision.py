"""What paired scores show of a bound: the interval of the gain, the outcome, the items needed.

The gain is the mean over items of candidate minus incumbent. Its variance is that of clusters
within strata, plus what one item more gained and one more lost would add (see
`backtrack.selection.stats.intervals`): where no answer differs, an interval still has a length.
Student's quantile makes up for few clusters.

Each end of an interval is the gain at which a test at that gain would just say no, with the
variance that scores would have there. Where answers are lost and hardly any won, more are lost
where the gain is lower, and vary more: an interval with one variance at both ends lets a drop of
the size of the bound pass in up to 7 of 100 draws where 5 are allowed. How the variance follows
the mean is taken from the third moment, as by exponential tilting of the items; of right or wrong
answers that gives the interval of Wilson (J. Am. Stat. Assoc. 22, 1927), to the order of 1 over
the number of items. An end reaches half of a step further, the least by which the sum of such
answers can move (the correction for continuity; R. G. Newcombe, Stat. Med. 17, 1998): without it,
up to 5.9 of 100 pass at the bound where few answers change hands. Pure numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from backtrack.records import Interval
from backtrack.selection.stats.bootstrap import deviation, residual_sums
from backtrack.selection.stats.intervals import reserve, welch_satterthwaite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backtrack.records.gate import Outcome

    Floats = NDArray[np.float64]

_POWER = NormalDist().inv_cdf(0.8)
_NO_DISTANCE = 1e-9


@dataclass(frozen=True)
class Gains:
    """What the items of one objective add to the gain that a bound is about.

    Attributes:
        values: Candidate minus incumbent, more is better, in the bound's unit, [items].
        clusters: Cluster of each item; the item where it shares nothing.
        top: The most that an item can gain; None if that is not known.
        share: The objective's share in the bound's mean.
    """

    values: Floats
    clusters: tuple[str, ...]
    top: float | None
    share: float = 1.0

    @cached_property
    def variance(self) -> float:
        """Variance of the mean of the values, without `reserve`."""
        return deviation(self.values, self.clusters) ** 2 / len(self.values)

    @cached_property
    def third_cumulant(self) -> float:
        """Third cumulant of the mean of the values."""
        sums = residual_sums(self.values, self.clusters)
        return float(sum((each**3).sum() for each in sums)) / len(self.values) ** 3

    @cached_property
    def step(self) -> float:
        """The least by which the mean moves when one item gains otherwise."""
        distances = np.diff(np.unique(np.append(self.values, 0.0)))
        distances = distances[distances > _NO_DISTANCE]
        return float(distances.min() if len(distances) else self.top or 0.0) / len(self.values)

    @property
    def num_free(self) -> int:
        """Degrees of freedom: clusters less one."""
        return max(len(set(self.clusters)) - 1, 1)


@dataclass(frozen=True)
class Gain:
    """A gain that one objective or several add up to.

    Attributes:
        parts: What each objective adds.
    """

    parts: Sequence[Gains]

    @property
    def estimate(self) -> float:
        return sum(part.share * float(part.values.mean()) for part in self.parts)

    @property
    def num_items(self) -> int:
        return sum(len(part.values) for part in self.parts)

    @cached_property
    def variances(self) -> tuple[float, ...]:
        """Variance that each objective adds."""
        return tuple(
            part.share**2 * (part.variance + reserve(part.values, part.top) / len(self.parts))
            for part in self.parts
        )

    @property
    def _slope(self) -> float:
        """How much the variance of the gain grows with the gain."""
        variance = sum(self.variances)
        cumulant = sum(part.share**3 * part.third_cumulant for part in self.parts)
        return cumulant / variance if variance else 0.0

    def interval(self, tail: float) -> Interval:
        """Make the interval each end of which is wrong with chance `tail`."""
        from scipy.special import stdtrit

        num_free = welch_satterthwaite(
            [(v, part.num_free) for v, part in zip(self.variances, self.parts, strict=True)]
        )
        quantile = float(stdtrit(max(num_free, 1), 1 - tail))
        middle = self.estimate + quantile**2 * self._slope / 2
        reach = quantile * math.hypot(math.sqrt(sum(self.variances)), quantile * self._slope / 2)
        reach += min(part.share * part.step for part in self.parts) / 2
        low, high = (round(end, 12) for end in (middle - reach, middle + reach))
        return Interval(estimate=round(self.estimate, 12), low=low, high=high)

    def items_to_decide(self, least: float, tail: float) -> int | None:
        """Compute the items that show on which side of `least` the gain lies, with 80% power.

        Args:
            least: The lowest gain that keeps the bound.
            tail: One-sided level.

        Returns:
            Items over all objectives, in the proportions of now; None if the gain lies on `least`.
        """
        distance = abs(self.estimate - least)
        if distance < _NO_DISTANCE:
            return None
        reach = NormalDist().inv_cdf(1 - tail) + _POWER
        return math.ceil(self.num_items * sum(self.variances) * (reach / distance) ** 2)


def outcome_of(gain: Interval, least: float) -> Outcome:
    """Say whether the interval of a gain lies above the lowest that keeps a bound, or below."""
    if gain.low >= least:
        return "passes"
    return "fails" if gain.high < least else "undecided"


def overall(outcomes: Sequence[Outcome]) -> Outcome:
    """A gate fails with one bound, and passes with all."""
    if "fails" in outcomes:
        return "fails"
    return "undecided" if "undecided" in outcomes else "passes"
