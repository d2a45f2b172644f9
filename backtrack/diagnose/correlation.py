"""Correlate metrics with measured forgetting. Pure.

Intervals are closed forms: Fisher's transformation for Pearson's r, with Bonett and Wright's
variance (1 + r^2 / 2) / (n - 3) for Spearman's rho. Points of one path are not an independent
sample: a correlation over points describes this path and does not generalize to another.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from backtrack.records import Interval
from backtrack.records.diagnosis import Correlation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.records import Role
    from backtrack.records.diagnosis import Forgetting, Over

QUANTILE = 1.959964
"""Quantile of the normal distribution for two-sided intervals at 95%."""
MIN_NUM = 4


def correlations(measured: Sequence[Forgetting], over: Over) -> tuple[Correlation, ...]:
    """Correlate each metric that all points or entrants have with forgetting.

    Args:
        measured: Points or entrants with their metrics.
        over: Which of the two they are.
    """
    if not measured:
        return ()
    names = [n for n in measured[0].metrics if all(n in m.metrics for m in measured)]
    lost = [m.forgetting for m in measured]
    return tuple(
        _correlation(name, [m.metrics[name] for m in measured], lost, over) for name in names
    )


def _correlation(
    name: str, values: Sequence[float], lost: Sequence[float], over: Over
) -> Correlation:
    metric, _, role = name.partition("/")
    return Correlation(
        metric=metric,
        role=cast("Role", role) if role else None,
        over=over,
        num=len(values),
        pearson=pearson(values, lost),
        spearman=spearman(values, lost),
    )


def pearson(left: Sequence[float], right: Sequence[float]) -> Interval | None:
    """Linear correlation with its 95% interval; None below four pairs or without spread."""
    return _with_interval(left, right, 0.0)


def spearman(left: Sequence[float], right: Sequence[float]) -> Interval | None:
    """Rank correlation with its 95% interval, ties at their mean rank; None like `pearson`."""
    return _with_interval(_ranks(left), _ranks(right), 0.5)


def _with_interval(
    left: Sequence[float], right: Sequence[float], widening: float
) -> Interval | None:
    """Fisher's interval with its variance multiplied by `1 + widening * r^2`."""
    count = len(left)
    if count < MIN_NUM or len(set(left)) < 2 or len(set(right)) < 2:
        return None
    r = max(-1.0, min(1.0, _linear(left, right)))
    if abs(r) > 1 - 1e-12:
        return Interval(estimate=r, low=r, high=r)
    half = QUANTILE * math.sqrt((1 + widening * r**2) / (count - 3))
    return Interval(
        estimate=r, low=math.tanh(math.atanh(r) - half), high=math.tanh(math.atanh(r) + half)
    )


def _linear(left: Sequence[float], right: Sequence[float]) -> float:
    a, b = _centred(left), _centred(right)
    scale = math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / scale


def _centred(values: Sequence[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def _ranks(values: Sequence[float]) -> list[float]:
    positions: dict[float, list[int]] = {}
    for position, value in enumerate(sorted(values)):
        positions.setdefault(value, []).append(position)
    means: Mapping[float, float] = {v: sum(p) / len(p) for v, p in positions.items()}
    return [means[value] for value in values]
