"""The rule that picks a point. Pure numpy.

1. Only points that meet every constraint can be chosen.
2. Utility is smoothed along alpha: for each step and profile with at least five strengths (the
   base is strength 0 of every one) a least-squares polynomial gives the fitted value, of the
   lowest degree from 3 to 5 that the items do not refute: the residuals' bootstrap intervals must
   cover zero, at 95% for all of them together. Elsewhere the utility stands as measured.
   The base, which lies on several curves, takes the mean of its fitted values. A point measured
   on part of the items counts for as much in the fit.
3. ELIGIBLE are the feasible points measured on as many items as any, and those of fewer items
   that lie on a curve which holds. The TOP is the eligible point of highest smoothed utility.
4. TIED are the eligible points that the items cannot tell from the top: the paired bootstrap
   interval of top minus point, at 95%, covers zero, both taken on the fitted curves; and those
   measured, on all items, no lower than the top, whatever the curve says.
5. The base is the choice where it is tied. Else the choice is the tied point nearest the base, by
   distance, then alpha, then step, of those at most `INDIFFERENCE` points below the top.

NOTE: the tie is judged on fitted values since measured ones cost power. In simulation (12 alphas,
200 items a role, base 13 points below the best) the chosen point lay 0.9 points below the best;
with measured differences 2.7, with no smoothing at all 2.1. The best was among the tied in 99 of
100 runs; in 78 where utility falls off a cliff that a cubic rounds (1000 items a role).

NOTE: without the bound of rule 5 few items cost the user utility that they do show: replayed on
recorded runs (tests/bench/replay.py, 8 seeds) the choice lay 1.5 to 5.4 points further below the
best than with it, at 40% of a grid's items.

Low power therefore leads towards the base, never away from it: without evidence that a longer way
pays, the shorter one is taken, and the selection says how many items would settle it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from backtrack.selection.statistics import LEVEL, chances_best

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backtrack.point import Point

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

MIN_ALPHAS = 5
DEGREES = (3, 4, 5)
INDIFFERENCE = 1.0
"""Points of utility that standing nearer to the base may cost."""
_NO_GAP = 1e-9


@dataclass(frozen=True)
class Curve:
    """Points of one step and profile, the base included.

    Attributes:
        step: The step.
        profile: The profile.
        columns: Where its points stand among all.
        fit: Matrix that turns their utilities into fitted ones, [len(columns), len(columns)].
    """

    step: int
    profile: str
    columns: tuple[int, ...]
    fit: Floats


@dataclass(frozen=True)
class Decision:
    """What the rule made of the points; arrays are [points].

    Attributes:
        chosen: Column of the choice.
        top: Column of the highest smoothed utility.
        smoothed: Utility on the fitted curves.
        is_tied: Eligible and not told apart from the top.
        chances: Share of bootstrap samples in which it is highest on the fitted curves, among the
            eligible.
        refuted: Curves left as measured since no low polynomial fits them.
    """

    chosen: int
    top: int
    smoothed: Floats
    is_tied: Flags
    chances: Floats
    refuted: tuple[Curve, ...]


@dataclass(frozen=True)
class Measured:
    """Points and what their items say of their utility.

    Attributes:
        points: The points, the base among them.
        distances: From the base, [points].
        shares: Of the items each was measured on, [points].
        utilities: As measured, in points, [points].
        samples: Paired bootstrap samples of them, [resamples, points].
    """

    points: Sequence[Point]
    distances: Floats
    shares: Floats
    utilities: Floats
    samples: Floats

    @cached_property
    def curves(self) -> tuple[tuple[Curve, ...], tuple[Curve, ...]]:
        """Curves that hold, and those the items refute."""
        holding: list[Curve] = []
        refuted: list[Curve] = []
        for degrees in find_curves(self.points, self.shares):
            curves = (c for c in degrees if not _is_refuted(c, self.utilities, self.samples))
            found = next(curves, None)
            if found is None:
                refuted.append(degrees[0])
            else:
                holding.append(found)
        return tuple(holding), tuple(refuted)

    @cached_property
    def smoother(self) -> Floats:
        """Matrix that turns utilities into smoothed ones, [points, points]."""
        return _smoother(len(self.points), self.curves[0])

    @property
    def is_deepest(self) -> Flags:
        """Measured on as many items as any, [points]."""
        return np.asarray(self.shares >= self.shares.max())

    @property
    def is_held(self) -> Flags:
        """Measured on as many items as any, or on a curve that holds, [points]."""
        held = self.is_deepest
        for curve in self.curves[0]:
            held[list(curve.columns)] = True
        return held

    @cached_property
    def smoothed(self) -> Floats:
        """Utilities on the fitted curves, [points]."""
        found: Floats = self.smoother @ self.utilities
        return found

    @cached_property
    def fitted(self) -> Floats:
        """Their bootstrap samples, [resamples, points]."""
        found: Floats = self.samples @ self.smoother.T
        return found

    def ranked(self) -> list[int]:
        """Columns that may be the top, the highest smoothed utility first, then the nearer."""
        found = np.flatnonzero(self.is_held)
        return sorted(map(int, found), key=lambda i: (-self.smoothed[i], self.distances[i]))

    def preferred(self) -> list[int]:
        """All columns, the base first, then the nearest: by distance, then alpha, then step."""

        def way(i: int) -> tuple[bool, float, float, int]:
            point = self.points[i]
            return not point.is_base, float(self.distances[i]), point.alpha, point.step

        return sorted(range(len(self.points)), key=way)


def choose(measured: Measured, is_feasible: Flags) -> Decision:
    """Apply the rule.

    Args:
        measured: The points.
        is_feasible: Which meet every constraint, [points]; at least one of them eligible.
    """
    is_eligible = is_feasible & measured.is_held
    top = next(i for i in measured.ranked() if is_feasible[i])
    is_tied = is_eligible & tied_with(measured, top)
    chances = np.zeros(len(measured.points))
    chances[is_eligible] = chances_best(measured.fitted[:, is_eligible])
    is_open = is_tied & worth_choosing(measured, top)
    chosen = next(i for i in measured.preferred() if is_open[i])
    return Decision(chosen, top, measured.smoothed, is_tied, chances, measured.curves[1])


def tied_with(measured: Measured, top: int) -> Flags:
    """Points that the items cannot tell from the top (rule 4), eligible or not."""
    is_as_high = (measured.utilities >= measured.utilities[top]) & measured.is_deepest
    is_tied = is_as_high | _not_worse(top, measured.fitted)
    is_tied[top] = True
    return np.asarray(is_tied)


def worth_choosing(measured: Measured, top: int) -> Flags:
    """Points that give up little of the top's utility, and the base (rule 5).

    The base comes first in `preferred`, so that it is taken wherever it is tied.
    """
    is_base = np.array([point.is_base for point in measured.points])
    is_near = measured.smoothed >= measured.smoothed[top] - INDIFFERENCE
    return np.asarray(is_base | is_near)


def _not_worse(top: int, samples: Floats) -> Flags:
    """Points whose interval of top minus point does not lie above zero; it never lies below.

    Sorting is left out where counting says as much: the quantile lies between two neighbours in
    order, `below` of them under the lower one.
    """
    gaps = samples[:, [top]] - samples
    below = math.floor((1 - LEVEL) / 2 * (len(gaps) - 1))
    counts = (gaps <= _NO_GAP).sum(axis=0)
    flags: Flags = counts > below + 1
    close = np.flatnonzero(counts == below + 1)
    if len(close):
        flags[close] = np.quantile(gaps[:, close], (1 - LEVEL) / 2, axis=0) <= _NO_GAP
    return flags


def find_curves(points: Sequence[Point], shares: Floats) -> tuple[tuple[Curve, ...], ...]:
    """Curves of each step and profile with enough strengths, one a degree, the lowest first."""
    base = [i for i, point in enumerate(points) if point.is_base]
    groups: dict[tuple[int, str], list[int]] = {}
    for i, point in enumerate(points):
        if not point.is_base:
            groups.setdefault((point.step, point.profile), []).append(i)
    found: list[tuple[Curve, ...]] = []
    for (step, profile), members in groups.items():
        columns = (*base, *members)
        if len(columns) >= MIN_ALPHAS:
            alphas = np.array([points[i].alpha for i in columns])
            weights = shares[list(columns)]
            degrees = dict.fromkeys(min(degree, len(columns) - 2) for degree in DEGREES)
            fits = [_polynomial_fit(alphas, weights, degree) for degree in degrees]
            found.append(tuple(Curve(step, profile, columns, fit) for fit in fits))
    return tuple(found)


def _polynomial_fit(alphas: Floats, weights: Floats, degree: int) -> Floats:
    """Weighted least squares onto polynomials in alpha."""
    roots = np.sqrt(weights)
    centred = 2 * alphas / alphas.max() - 1
    q, _ = np.linalg.qr(roots[:, None] * np.vander(centred, degree + 1))
    fit: Floats = (q @ q.T) * roots[None, :] / roots[:, None]
    return fit


def _is_refuted(curve: Curve, utilities: Floats, samples: Floats) -> bool:
    """Whether some residual's interval leaves zero out, at `LEVEL` for all residuals together."""
    columns = list(curve.columns)
    keep = np.eye(len(columns)) - curve.fit
    residuals = keep @ utilities[columns]
    deviations = samples[:, columns] @ keep.T - residuals
    tail = (1 - LEVEL) / 2 / len(columns)
    low, high = np.quantile(deviations, (tail, 1 - tail), axis=0)
    outside = (residuals + low > 1e-9) | (residuals + high < -1e-9)
    return bool(outside.any())


def _smoother(num_points: int, curves: Sequence[Curve]) -> Floats:
    """Matrix that turns utilities into smoothed ones, [points, points]."""
    matrix = np.zeros((num_points, num_points))
    times = np.zeros(num_points)
    for curve in curves:
        columns = np.array(curve.columns)
        matrix[np.ix_(columns, columns)] += curve.fit
        times[columns] += 1
    alone = times == 0
    matrix[alone, alone] = 1
    times[alone] = 1
    smoother: Floats = matrix / times[:, None]
    return smoother
