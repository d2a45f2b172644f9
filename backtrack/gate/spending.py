"""Share a chance of error among looks at growing data. Pure numpy.

A gate looks at its bounds after each nested part of the items and stops when they are decided.
Testing at the full level every time would err far too often. A spending function says how much of
the chance of error may be used up by the time a fraction of the items is in (Lan and DeMets,
Discrete sequential boundaries for clinical trials, Biometrika 70, 1983); their Pocock-type
function `level * ln(1 + (e - 1) * fraction)` gives a fifth of it to the first eighth, so that
clear cases end there. Critical values follow by integrating over the score's path, a Brownian
motion observed at the looks (Armitage, McPherson and Rowe, J. R. Stat. Soc. A 132, 1969).

NOTE: an O'Brien-Fleming-type function spends a millionth on the first eighth, where a drop would
have to be five standard errors from the bound; nothing would end there. Functions that spend more
early (a root of the fraction, or that of Hwang, Shih and DeCani, Stat. Med. 9, 1990) save at most
3 of 100 items in clear cases, and 3 to 9 of 100 candidates that lose half of what is allowed pass
no more: what ends a clear case is how many items an eighth is, see `tests/bench/gate.py`. Looks at
three eighths and three quarters save 2 to 7 of 100 items, and cost 1 to 2 such candidates.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np

_NUM_NODES = 400
_REACH = 8.0
"""Standard deviations below zero at which integration begins."""
_STEPS = 60
"""Halvings of an interval of critical values: to the last bit."""


def spent(fraction: float, level: float) -> float:
    """Compute the chance of error used up when a fraction of the items is in."""
    return level * math.log1p((math.e - 1) * min(fraction, 1.0))


@lru_cache(maxsize=256)
def tails(fractions: tuple[float, ...], level: float) -> tuple[float, ...]:
    """Compute the one-sided level of each look, so that all together err in a share `level`.

    Args:
        fractions: Share of the items at each look so far, ascending; at most 1.
        level: Chance of error of all looks up to fraction 1.

    Returns:
        One-sided levels; the last is that of the current look.
    """
    from scipy.special import ndtr, ndtri

    budget = np.diff([0.0, *(spent(fraction, level) for fraction in fractions)])
    # A score's path at a look is its z times the root of the fraction.
    ends = [float(-ndtri(budget[0]) * math.sqrt(fractions[0]))]
    at, weight = _nodes(fractions[0], ends[0])
    density = weight * np.exp(-(at**2) / (2 * fractions[0])) / math.sqrt(math.tau * fractions[0])
    for (before, now), chance in zip(pairwise(fractions), budget[1:], strict=True):
        spread = math.sqrt(now - before)
        low, high = -_REACH, _REACH
        for _ in range(_STEPS):
            middle = (low + high) / 2
            crossing = float(density @ ndtr((at - middle) / spread))
            low, high = (middle, high) if crossing > chance else (low, middle)
        ends.append(high)
        new, weight = _nodes(now, high)
        steps = np.exp(-(((new[:, None] - at) / spread) ** 2) / 2) / (spread * math.sqrt(math.tau))
        at, density = new, weight * (steps @ density)
    return tuple(
        float(ndtr(-end / math.sqrt(fraction)))
        for end, fraction in zip(ends, fractions, strict=True)
    )


def _nodes(fraction: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss and Legendre below a critical value of the path."""
    node, weight = np.polynomial.legendre.leggauss(_NUM_NODES)
    low = -_REACH * math.sqrt(fraction)
    half = (end - low) / 2
    return low + half * (node + 1), half * weight
