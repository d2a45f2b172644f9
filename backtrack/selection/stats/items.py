"""Split items into selection and report items, and selection items into nested rungs. Pure.

An ITEM is one scored question or window; its STRATUM is its id up to the last slash, usually a
task. Every function gives the same result for the same items and seed, in any order of the items.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from backtrack.errors import ObjectiveError

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_ITEMS = 2
"""Items each split and each rung must have: a standard deviation needs two."""


def stratum(item_id: str) -> str:
    """Return the part before the last slash, empty if there is none."""
    return item_id.rpartition("/")[0]


def split_items(
    item_ids: Sequence[str], num_selection: int, num_report: int, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw disjoint selection and report items, from each stratum in proportion to its size.

    If there are fewer items than requested, all of them are split in the requested proportion.

    Returns:
        Selection ids and report ids, each sorted.

    Raises:
        ObjectiveError: Either split would get fewer than `MIN_ITEMS` items.
    """
    if len(item_ids) < 2 * MIN_ITEMS or min(num_selection, num_report) < MIN_ITEMS:
        raise ObjectiveError(
            f"{len(item_ids)} items cannot be split into {num_selection} for selection and "
            f"{num_report} for the report: each needs at least {MIN_ITEMS}. Add more items."
        )
    by_stratum = strata(sorted(item_ids))
    drawn, selected = _quotas([len(ids) for ids in by_stratum.values()], num_selection, num_report)
    selection: list[str] = []
    report: list[str] = []
    for (name, ids), num, first in zip(by_stratum.items(), drawn, selected, strict=True):
        order = named_generator(seed, "split", name).permutation(len(ids))
        shuffled = [ids[i] for i in order[:num]]
        selection += shuffled[:first]
        report += shuffled[first:]
    return tuple(sorted(selection)), tuple(sorted(report))


def _quotas(sizes: list[int], num_selection: int, num_report: int) -> tuple[list[int], list[int]]:
    """Items to draw from each stratum, and how many of them are for selection."""
    num_items = sum(sizes)
    requested = num_selection + num_report
    if requested > num_items:
        share = round(num_items * num_selection / requested)
        num_selection = min(max(share, MIN_ITEMS), num_items - MIN_ITEMS)
        requested = num_items
    drawn = _apportion(requested, sizes)
    return drawn, _apportion(num_selection, drawn)


def _apportion(seats: int, sizes: list[int]) -> list[int]:
    """Share `seats` in proportion to `sizes` by largest remainder; the earlier wins a tie."""
    total = sum(sizes)
    shares = [seats * size // total for size in sizes]
    remainders = [seats * size % total for size in sizes]
    ranked = sorted(range(len(sizes)), key=lambda i: -remainders[i])
    for i in ranked[: seats - sum(shares)]:
        shares[i] += 1
    return shares


def strata(item_ids: Sequence[str]) -> dict[str, list[str]]:
    """Group ids by stratum; strata are sorted by name, ids keep their order."""
    groups: dict[str, list[str]] = defaultdict(list)
    for item_id in item_ids:
        groups[stratum(item_id)].append(item_id)
    return dict(sorted(groups.items()))


def named_generator(seed: int, *names: str) -> np.random.Generator:
    """Make an independent random stream per name: a new objective changes no other's draws."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def nested_order(item_ids: Sequence[str], seed: int) -> tuple[str, ...]:
    """Order items so that every prefix holds each stratum in proportion to its size."""
    ranked: list[tuple[float, str]] = []
    for name, ids in strata(sorted(item_ids)).items():
        order = named_generator(seed, "order", name).permutation(len(ids))
        ranked += [((rank + 0.5) / len(ids), ids[i]) for rank, i in enumerate(order)]
    return tuple(item_id for _, item_id in sorted(ranked))


def nested_rungs(
    item_ids: Sequence[str], shares: Sequence[float], seed: int, batch_size: int = 1
) -> list[tuple[str, ...]]:
    """Divide items into rungs; measured up to rung `i`, a point has a share `shares[i]` of them.

    With at least four batches of items, rungs are whole batches, so that measuring rung by rung
    takes no more batches than measuring all items at once.

    Args:
        item_ids: All items.
        shares: Cumulative shares, ascending, below 1; the last rung holds the remaining items.
        seed: Seed of the order.
        batch_size: Items per batch.

    Returns:
        Disjoint sorted ids, one tuple per rung.
    """
    order = nested_order(item_ids, seed)
    unit = batch_size if len(order) >= 4 * batch_size else 1
    ends = [max(unit * math.ceil(share * len(order) / unit), MIN_ITEMS) for share in shares]
    ends = [end for end in dict.fromkeys(ends) if len(order) - end >= MIN_ITEMS]
    slices = zip([0, *ends], [*ends, len(order)], strict=True)
    return [tuple(sorted(order[begin:end])) for begin, end in slices]
