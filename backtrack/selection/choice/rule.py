"""The rule that picks a point. Pure numpy.

1. Only points that meet every constraint can be chosen.
2. Target and general are smoothed over the points (see `stats.gaussian_process`). The smoothed
   utility is that of the smoothed scores.
3. ELIGIBLE are the feasible points measured on as many items as any, and those of fewer items that
   lie on a curve: at least five strengths of one step and profile, the base counting as one. The
   TOP is the eligible point of highest smoothed utility.
4. TIED are the eligible points that the items cannot tell from the top. Either the paired
   bootstrap interval of top minus point, at 95% and by smoothed scores, covers zero; or the point
   is measured on as many items as any and its measured utility is no lower than the top's.
5. The base is chosen if it is tied. Otherwise the choice is the tied point nearest the base, by
   distance, then alpha, then step, among those at most `INDIFFERENCE` points below the top.

NOTE: ties are decided on smoothed scores because measured ones cost power. tests/bench/replay.py
measures on recorded runs what the rule costs and gains: an `INDIFFERENCE` of 0.5 in place of 0.25
lost 0.02 to 0.03 points, no limit at all 1.5 to 5.4.

Low power therefore leads towards the base, never away from it: without evidence that going further
pays, the nearer point is chosen, and the selection says how many items would settle it.
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
_NO_GAP = 1e-9


@dataclass(frozen=True)
class Decision:
    """Result of the rule.

    Attributes:
        chosen: Column of the choice.
        top: Column of the eligible point of highest smoothed utility.
        smoothed: Smoothed utility, in points, [points].
        is_tied: Whether each point is tied with the top, [points].
        chances: Share of bootstrap samples in which each point has the highest smoothed utility of
            the eligible ones, [points].
    """

    chosen: int
    top: int
    smoothed: Floats
    is_tied: Flags
    chances: Floats


def choose(scores: SmoothedScores, is_feasible: Flags) -> Decision:
    """Apply the rule.

    Args:
        scores: Smoothed scores of the points, at a weight.
        is_feasible: Whether each point meets every constraint, [points]; at least one of these
            must be eligible.
    """
    is_eligible = is_feasible & scores.roles.is_eligible
    top = next(i for i in scores.ranked() if is_feasible[i])
    is_tied = is_eligible & tied_with(scores, top)
    chances = np.zeros(len(is_eligible))
    chances[is_eligible] = chances_best(scores.smoothed_samples[:, is_eligible])
    is_open = is_tied & worth_choosing(scores, top)
    chosen = next(i for i in scores.roles.preferred if is_open[i])
    return Decision(chosen, top, scores.smoothed, is_tied, chances)


def tied_with(scores: SmoothedScores, top: int) -> Flags:
    """Whether each point, eligible or not, cannot be told from the top (rule 4), [points]."""
    is_as_high = (scores.measured >= scores.measured[top]) & scores.roles.has_most_items
    is_tied = is_as_high | _not_worse(top, scores.smoothed_samples)
    is_tied[top] = True
    return np.asarray(is_tied)


def worth_choosing(scores: SmoothedScores, top: int) -> Flags:
    """Whether each point is near the top in utility or is the base (rule 5), [points].

    The base is first in `preferred`, so it is chosen whenever it is tied.
    """
    is_base = np.array([point.is_base for point in scores.roles.points])
    is_near = scores.smoothed >= scores.smoothed[top] - INDIFFERENCE
    return np.asarray(is_base | is_near)


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
