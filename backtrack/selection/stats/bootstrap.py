"""Paired statistics over items: how to split them, resample them and read the result. Pure.

Words: an ITEM is one scored question or window; its STRATUM is its id's part before the last
slash, usually a task. A SCORES matrix has one row a point and one column an item, the same items
at every point.

Promised: every function gives the same result for the same items and seed, in whatever order the
items come. One draw of items is used at every point, so differences between points are paired.
Not promised: exact coverage on small sets. In simulation (right and wrong answers, paired) the
95% interval leaves zero out in at most 5 of 100 cases where there is no difference, from 15 items
on; a true difference of 10 points it covers in 93 to 95 from 60 items on, in 91 at 30, in 80 to
91 at 15.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from backtrack.errors import ObjectiveError
from backtrack.records import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVEL = 0.95
NUM_RESAMPLES = 2000
MIN_ITEMS = 2
"""Items each split must have: a deviation needs two."""

_SIZE_AND_POWER = (1.96 + 0.84) ** 2
"""Of a two-sided test at 95% with 80% power, in squared deviations."""


def stratum(item_id: str) -> str:
    """The part before the last slash; empty where there is none."""
    return item_id.rpartition("/")[0]


def split_items(
    item_ids: Sequence[str], num_selection: int, num_report: int, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw disjoint items for choosing and for reporting, each stratum in proportion to its size.

    Where there are fewer items than asked for, all are shared in the asked proportion.

    Returns:
        Ids for selection and ids for the report, each sorted.

    Raises:
        ObjectiveError: Either side would get fewer than two items.
    """
    if len(item_ids) < 2 * MIN_ITEMS or min(num_selection, num_report) < MIN_ITEMS:
        raise ObjectiveError(
            f"{len(item_ids)} items cannot be shared into {num_selection} for selection and "
            f"{num_report} for the report: each needs at least {MIN_ITEMS}. Give more items."
        )
    strata = _strata(sorted(item_ids))
    drawn, selected = _quotas([len(ids) for ids in strata.values()], num_selection, num_report)
    selection: list[str] = []
    report: list[str] = []
    for (name, ids), num, first in zip(strata.items(), drawn, selected, strict=True):
        order = _generator(seed, "split", name).permutation(len(ids))
        shuffled = [ids[i] for i in order[:num]]
        selection += shuffled[:first]
        report += shuffled[first:]
    return tuple(sorted(selection)), tuple(sorted(report))


def _quotas(sizes: list[int], num_selection: int, num_report: int) -> tuple[list[int], list[int]]:
    """Items to draw from each stratum, and how many of them are for selection."""
    num_items = sum(sizes)
    asked = num_selection + num_report
    if asked > num_items:
        share = round(num_items * num_selection / asked)
        num_selection = min(max(share, MIN_ITEMS), num_items - MIN_ITEMS)
        asked = num_items
    drawn = _apportion(asked, sizes)
    return drawn, _apportion(num_selection, drawn)


def _apportion(seats: int, sizes: list[int]) -> list[int]:
    """Share `seats` in proportion to `sizes` by largest remainder; earlier ones win a draw."""
    total = sum(sizes)
    shares = [seats * size // total for size in sizes]
    remainders = [seats * size % total for size in sizes]
    ranked = sorted(range(len(sizes)), key=lambda i: -remainders[i])
    for i in ranked[: seats - sum(shares)]:
        shares[i] += 1
    return shares


def _strata(item_ids: Sequence[str]) -> dict[str, list[str]]:
    strata: dict[str, list[str]] = defaultdict(list)
    for item_id in item_ids:
        strata[stratum(item_id)].append(item_id)
    return dict(sorted(strata.items()))


def _generator(seed: int, *names: str) -> np.random.Generator:
    """A stream of its own for each name, so that adding one objective moves no other's draws."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def nested_order(item_ids: Sequence[str], seed: int) -> tuple[str, ...]:
    """The items in an order of which every first part holds each stratum in proportion."""
    ranked: list[tuple[float, str]] = []
    for name, ids in _strata(sorted(item_ids)).items():
        order = _generator(seed, "order", name).permutation(len(ids))
        ranked += [((rank + 0.5) / len(ids), ids[i]) for rank, i in enumerate(order)]
    return tuple(item_id for _, item_id in sorted(ranked))


def chunks(
    item_ids: Sequence[str], shares: Sequence[float], seed: int, batch_size: int = 1
) -> list[tuple[str, ...]]:
    """The items in parts, each sorted: the first `i` parts together are a share of all items.

    Where there are items for four batches or more, parts are made of whole batches, so that a
    point measured part by part takes no more batches than one measured at once.

    Args:
        item_ids: All items.
        shares: Ascending, below 1; the last part is the rest.
        seed: Of the order.
        batch_size: Items a batch.
    """
    order = nested_order(item_ids, seed)
    unit = batch_size if len(order) >= 4 * batch_size else 1
    ends = [max(unit * math.ceil(share * len(order) / unit), MIN_ITEMS) for share in shares]
    ends = [end for end in dict.fromkeys(ends) if len(order) - end >= MIN_ITEMS]
    parts = zip([0, *ends], [*ends, len(order)], strict=True)
    return [tuple(sorted(order[begin:end])) for begin, end in parts]


def resample_means(
    scores: Floats,
    item_ids: Sequence[str],
    *,
    seed: int,
    name: str,
    num_resamples: int = NUM_RESAMPLES,
) -> Floats:
    """Mean scores of bootstrap samples of the items; see `item_weights`.

    Args:
        scores: [points, items], none missing.
        item_ids: Ids of the columns.
        seed: Of the draws.
        name: The objective's; each is drawn independently.
        num_resamples: How many samples.

    Returns:
        [resamples, points]
    """
    weights = item_weights(tuple(item_ids), seed, name, num_resamples)
    means: Floats = weights @ scores.T / weights.sum(axis=1, keepdims=True)
    return means


@lru_cache(maxsize=64)
def item_weights(item_ids: tuple[str, ...], seed: int, name: str, num_resamples: int) -> Floats:
    """How much each item counts in each bootstrap sample, [resamples, items]; 1 in the mean.

    Items are drawn within strata. A stratum of n items gives n - 1 draws (Rao and Wu 1988), which
    makes the variance of the mean unbiased; n draws would make it too small by (n - 1) / n. Strata
    of one item are drawn from together, since alone they would seem to have no spread.

    Args:
        item_ids: Ids of the columns.
        seed: Of the draws.
        name: The objective's; each is drawn independently.
        num_resamples: How many samples.
    """
    order = np.argsort(np.array(item_ids))
    generator = _generator(seed, "bootstrap", name)
    weights = np.zeros((num_resamples, len(item_ids)))
    for columns in _drawn_together([item_ids[i] for i in order]):
        num = len(columns)
        counts = _draw_counts(generator, num_resamples, num)
        weights[:, order[columns]] = num / max(num - 1, 1) * counts
    return weights


def _drawn_together(item_ids: Sequence[str]) -> list[list[int]]:
    """Columns of each stratum; strata of one item are pooled, and a lone one joins the first."""
    column = {item_id: i for i, item_id in enumerate(item_ids)}
    groups = [[column[item_id] for item_id in ids] for ids in _strata(item_ids).values()]
    whole = [group for group in groups if len(group) > 1]
    pooled = [i for group in groups if len(group) == 1 for i in group]
    if len(pooled) > 1 or not whole:
        return [*whole, pooled] if pooled else whole
    whole[0] += pooled
    return whole


def _draw_counts(generator: np.random.Generator, num_resamples: int, num_items: int) -> Floats:
    """How often each item is drawn in n - 1 draws: [resamples, items]."""
    num_draws = max(num_items - 1, 1)
    drawn = generator.integers(0, num_items, (num_resamples, num_draws))
    drawn += num_items * np.arange(num_resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=num_resamples * num_items)
    return counts.reshape(num_resamples, num_items).astype(np.float64)


def interval(estimate: float, samples: Floats, level: float = LEVEL) -> Interval:
    """The two-sided percentile interval of bootstrap `samples` around `estimate`."""
    tail = (1 - level) / 2
    low, high = np.quantile(samples, (tail, 1 - tail))
    return Interval(estimate=float(estimate), low=float(low), high=float(high))


def shared_level(num_compared: int, num_free: int) -> float:
    """Level of a bootstrap interval at which several comparisons together keep `LEVEL`.

    The error is shared equally (Bonferroni). A bootstrap takes its spread for the true one; what
    that leaves out of few items is made up for by Student's quantile in place of the normal one.

    Args:
        num_compared: Comparisons.
        num_free: Items less what was estimated from them.
    """
    from scipy.special import ndtr, stdtrit

    tail = (1 - LEVEL) / 2 / max(num_compared, 1)
    return float(2 * ndtr(stdtrit(max(num_free, 1), 1 - tail)) - 1)


def chances_best(utilities: Floats) -> Floats:
    """Share of bootstrap samples in which each point is highest; a draw is shared.

    Args:
        utilities: [resamples, points]

    Returns:
        [points], summing to 1
    """
    winners = utilities >= utilities.max(axis=1, keepdims=True) - 1e-9
    shares: Floats = (winners / winners.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


def deviation(differences: Floats, item_ids: Sequence[str]) -> float:
    """Standard deviation of paired per-item differences about their strata's means.

    Args:
        differences: [items]
        item_ids: Ids of the items.
    """
    order = np.argsort(np.array(item_ids))
    ordered = differences[order]
    variances = [
        len(columns) * float(np.var(ordered[columns], ddof=1))
        for columns in _drawn_together([item_ids[i] for i in order])
        if len(columns) > 1
    ]
    return math.sqrt(sum(variances) / len(ordered))


def pooled_deviation(parts: Mapping[str, float], sharing: Mapping[str, int]) -> float:
    """Deviation a role's item of a difference that sums over objectives.

    Args:
        parts: Deviation of each objective's items, already times its coefficient in the sum.
        sharing: How many objectives share the role's items with it, itself included.
    """
    return math.sqrt(sum(sharing[name] * part**2 for name, part in parts.items()))


def items_to_settle(sd: float, difference: float) -> int | None:
    """Items needed to see a difference: n = (1.96 + 0.84)^2 sd^2 / difference^2.

    Args:
        sd: Deviation of the paired per-item differences, in the unit of `difference`.
        difference: Between the two means.

    Returns:
        The number, for 80% power at 95%; none where there is no difference to see.
    """
    if abs(difference) < 1e-9:
        return None
    return max(1, round(_SIZE_AND_POWER * (sd / difference) ** 2))
