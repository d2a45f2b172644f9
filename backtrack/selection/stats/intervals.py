"""Intervals of scores and of paired differences, from bootstrap variances and samples. Pure numpy.

Own scores. A percentile interval of a rate near 0 or 1 is too short: with no right answer in 50 it
has no length. A fraction has the interval of Agresti and Coull (1998) instead, over an EFFECTIVE
number of items: that of right or wrong answers with the variance that the bootstrap finds, which
clusters lower and answers in parts raise. Student's quantile makes up for few clusters (Korn and
Graubard, Confidence intervals for proportions with small expected number of positive counts
estimated from survey data, Survey Methodology 24, 1998). It holds for any score between 0 and 1.
Scores of other units keep their percentile interval, at Student's level.

Roles and utility. Intervals of the objectives are combined by adding the squared distances to each
end (Zou and Donner, Construction of confidence limits about effect measures, Statistics in
Medicine 27, 2008): objectives share no items.

Differences. Percentile intervals at Student's level. Where hardly any answer differs, those too
have no length; so an objective counts as if one more item had gained and one had lost the most
that any did (as Bonett and Price do for paired proportions, J. Educ. Behav. Stat. 37, 2012). The
objectives of one difference share these two (Price and Bonett, Computational Statistics and Data
Analysis 45, 2004).

NOTE: tests/bench/coverage.py measures it. Of right or wrong answers at a rate of 0.01, no interval
covers between 91 and 98.6% on 50 items, nor between 92 and 98.2% on 100: the ends of this one
reach far enough, those of Wilson's do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from backtrack.records import Interval
from backtrack.selection.stats.bootstrap import LEVEL, interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


@dataclass(frozen=True)
class Part:
    """What one objective adds to a difference.

    Attributes:
        estimate: Its difference, in the unit of the sum.
        samples: Bootstrap samples of it, [resamples].
        reserve: Variance it has at least, see `reserve`.
        num_free: Degrees of freedom: its clusters less one.
        largest: The largest difference there can be; infinite if that is unknown.
    """

    estimate: float
    samples: Floats
    reserve: float
    num_free: int
    largest: float = math.inf

    @property
    def variance(self) -> float:
        return float(np.var(self.samples)) + self.reserve


def student_quantile(num_free: float, num_compared: int = 1) -> float:
    """Return the quantile of Student's t at which all comparisons together keep `LEVEL`.

    Args:
        num_free: Degrees of freedom.
        num_compared: Comparisons that share the error equally (Bonferroni).
    """
    from scipy.special import stdtrit

    return float(stdtrit(max(num_free, 1), 1 - (1 - LEVEL) / 2 / max(num_compared, 1)))


def percentile_interval(estimate: float, samples: Floats, quantile: float) -> Interval:
    """Make a percentile interval that reaches as far as a normal one of so many deviations."""
    return interval(estimate, samples, math.erf(quantile / math.sqrt(2)))


def rate_interval(rate: float, samples: Floats, num_items: int, num_free: int) -> Interval:
    """Make the interval of a mean of scores between 0 and 1.

    Args:
        rate: The mean.
        samples: Bootstrap samples of it, [resamples].
        num_items: Items; the effective number where all scores are 0 or all are 1.
        num_free: Degrees of freedom: clusters less one.
    """
    share, variance = min(max(rate, 0.0), 1.0), float(np.var(samples))
    binomial = share * (1 - share)
    effective = binomial / variance if binomial > 0 and variance > 0 else num_items
    effective *= (_Z / student_quantile(num_free)) ** 2
    centre = (effective * share + _Z**2 / 2) / (effective + _Z**2)
    reach = _Z * math.sqrt(centre * (1 - centre) / (effective + _Z**2))
    low, high = max(centre - reach, 0.0), min(centre + reach, 1.0)
    return Interval(estimate=float(rate), low=min(low, share), high=max(high, share))


def combine(estimate: float, parts: Iterable[tuple[float, Interval]]) -> Interval:
    """Combine intervals of independent scores into that of their weighted sum.

    Args:
        estimate: The sum.
        parts: Weight and interval of each score.
    """
    below = above = 0.0
    for weight, part in parts:
        ends = sorted((weight * (part.low - part.estimate), weight * (part.high - part.estimate)))
        below, above = math.hypot(below, ends[0]), math.hypot(above, ends[1])
    low, high = (round(float(end), 12) for end in (estimate - below, estimate + above))
    return Interval(estimate=float(estimate), low=low, high=high)


def reserve(gaps: Floats, top: float | None) -> float:
    """Compute the variance that two items more, one gained and one lost, add to a mean gap.

    They differ as much as the item that differs most. Where none does, they differ by `top`; if
    that is unknown, nothing is added.

    Args:
        gaps: Paired differences by item, [items].
        top: Highest score an item can have, if scores lie between 0 and it.
    """
    largest = float(np.abs(gaps).max(initial=0.0)) or top or 0.0
    return 2 * (largest / (len(gaps) + 2)) ** 2


def difference_interval(parts: Iterable[Part], num_compared: int = 1) -> Interval:
    """Make the interval of a paired difference that objectives add up to.

    It ends where no difference can be larger.

    Args:
        parts: What each objective adds.
        num_compared: Comparisons that share the level.
    """
    listed = list(parts)
    quantile = student_quantile(degrees_of_freedom(listed), num_compared)
    estimate = float(sum(part.estimate for part in listed))
    samples = np.sum([part.samples for part in listed], axis=0)
    plain = percentile_interval(estimate, samples, quantile)
    reach = quantile * math.sqrt(sum(part.reserve for part in listed))
    most = sum(part.largest for part in listed)
    spread = Interval(estimate=0.0, low=-reach, high=reach)
    found = combine(estimate, [(1.0, plain), (1.0, spread)])
    return Interval(estimate=estimate, low=max(found.low, -most), high=min(found.high, most))


def degrees_of_freedom(parts: Iterable[Part]) -> float:
    """Compute the degrees of freedom of a difference.

    An objective of few items counts by what it adds to the variance: 15 items beside 200 are not
    215 if most of the variance is theirs. Clusters count, not their items.
    """
    return welch_satterthwaite([(part.variance, part.num_free) for part in parts])


def welch_satterthwaite(parts: Sequence[tuple[float, int]]) -> float:
    """Compute the degrees of freedom of a sum from the variance and freedom of each part."""
    shares = sum(variance**2 / num_free for variance, num_free in parts)
    return float(sum(variance for variance, _ in parts) ** 2 / shares) if shares else 1.0
