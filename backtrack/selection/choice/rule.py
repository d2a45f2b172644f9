"""The rule that picks a point. Pure numpy.

1. Only points that meet every bound can be chosen.
2. Target and general are smoothed over the points (see `stats.gaussian_process`). The smoothed
   utility is that of the smoothed scores.
3. ELIGIBLE are the feasible points measured on as many items as any, and those of fewer items that
   lie on a curve: at least five strengths of one step and profile, the base counting as one. The
   TOP is the eligible point of highest smoothed utility.
4. TIED are the eligible points that the items cannot tell from the top. Either the paired
   bootstrap interval of top minus point, at 95% and by smoothed scores, covers zero; or the point
   is measured on as many items as any and its measured utility is no lower than the top's.
5. The choice is the point nearest the base, by distance, then alpha, then step, among those at
   most `INDIFFERENCE` points below the top. It is the base only where the top leads it by at most
   `BASE_ERRORS` standard errors of their difference: the top is then hardly likelier to be better
   than it would be by luck as the highest of all points.
6. The CAUTIOUS choice is the base wherever it is tied, else the tied point nearest the base among
   those of rule 5.

Choosing and claiming are two questions. The choice is to cost little if it is wrong: the base
taken wherever the items cannot tell costs more than the smaller gains it passes by. What may be
claimed of the choice is decided on other items, at 95% (see `verdict`).

NOTE: tests/bench/regret.py measures it. With 200 items a role rule 5 costs 0.49 points over gains
of 1 to 10 points, and the cautious one 1.01; where the base is best 0.24 and 0.03 (40 seeds). From
0.33 to 0.67 standard errors the mean of both is flat; an `INDIFFERENCE` of 0.5 cost 0.03 points
more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backtrack.selection.stats.bootstrap import LEVEL, chances_best

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backtrack.selection.stats.smoothed import SmoothedScores

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

INDIFFERENCE = 0.25
"""Points of utility given up for a point nearer to the base."""
BASE_ERRORS = 0.33
"""Standard errors by which the top must lead the base for the base to be left."""
_NO_GAP = 1e-9


@dataclass(frozen=True)
class Decision:
    """Result of the rule.

    Attributes:
        chosen: Column of the choice.
        cautious: Column of the cautious choice.
        top: Column of the eligible point of highest smoothed utility.
        smoothed: Smoothed utility, in points, [points].
        is_tied: Whether each point is tied with the top, [points].
        chances: Share of bootstrap samples in which each point has the highest smoothed utility of
            the eligible ones, [points].
    """

    chosen: int
    cautious: int
    top: int
    smoothed: Floats
    is_tied: Flags
    chances: Floats


def choose(scores: SmoothedScores, is_feasible: Flags, *, is_cautious: bool = False) -> Decision:
    """Apply the rule.

    Args:
        scores: Smoothed scores of the points, at a weight.
        is_feasible: Whether each point meets every bound, [points]; at least one of these
            must be eligible.
        is_cautious: Choose by the cautious rule.
    """
    is_eligible = is_feasible & scores.roles.is_eligible
    top = next(i for i in scores.ranked() if is_feasible[i])
    is_tied = is_eligible & tied_with(scores, top)
    chances = np.zeros(len(is_eligible))
    chances[is_eligible] = chances_best(scores.smoothed_samples[:, is_eligible])
    by_rule, cautious = (
        first_open(scores, is_eligible & worth_choosing(scores, top, is_tied if c else None))
        for c in (False, True)
    )
    chosen = cautious if is_cautious else by_rule
    return Decision(chosen, cautious, top, scores.smoothed, is_tied, chances)


def first_open(scores: SmoothedScores, is_open: Flags) -> int:
    """Return the column of the open point that is preferred, nearest the base."""
    return next(i for i in scores.roles.preferred if is_open[i])


def tied_with(scores: SmoothedScores, top: int) -> Flags:
    """Whether each point, eligible or not, cannot be told from the top (rule 4), [points]."""
    is_as_high = (scores.measured >= scores.measured[top]) & scores.roles.has_most_items
    is_tied = is_as_high | _not_worse(top, scores.smoothed_samples)
    is_tied[top] = True
    return np.asarray(is_tied)


def worth_choosing(scores: SmoothedScores, top: int, is_tied: Flags | None = None) -> Flags:
    """Whether each point, eligible or not, may be chosen with this top, [points].

    The base is first in `preferred`, so it is chosen whenever it may be.

    Args:
        scores: Smoothed scores of the points, at a weight.
        top: Column of the top.
        is_tied: Whether each point is tied with the top, for the cautious rule, [points]; None for
            rule 5.
    """
    base = scores.roles.base
    flags = np.asarray(scores.smoothed >= scores.smoothed[top] - INDIFFERENCE)
    if is_tied is not None:
        flags &= is_tied
        flags[base] = is_tied[base]
    else:
        flags[base] = not leads(scores, top, base)
    return flags


def leads(scores: SmoothedScores, top: int, base: int) -> bool:
    """Whether the top leads the base by more than `BASE_ERRORS` standard errors."""
    gaps = scores.smoothed_samples[:, top] - scores.smoothed_samples[:, base]
    lead = scores.smoothed[top] - scores.smoothed[base]
    return bool(lead > BASE_ERRORS * gaps.std() + _NO_GAP)


def _not_worse(top: int, samples: Floats) -> Flags:
    """Whether the interval of top minus point covers zero or less, [points].

    Counting samples replaces sorting unless the quantile is close: it lies between two neighbours
    in order, with `below` samples under the lower one.
    """
    below = math.floor((1 - LEVEL) / 2 * (len(samples) - 1))
    counts = np.count_nonzero(samples[:, top] - _NO_GAP <= samples.T, axis=1)
    flags: Flags = counts > below + 1
    close = np.flatnonzero(counts == below + 1)
    if len(close):
        gaps = samples[:, [top]] - samples[:, close]
        flags[close] = np.quantile(gaps, (1 - LEVEL) / 2, axis=0) <= _NO_GAP
    return flags
