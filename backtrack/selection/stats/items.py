"""Split items into selection and report items, and selection items into nested rungs. Pure.

An ITEM is one scored question or window; its STRATUM is its id up to the last slash, usually a
task. A CLUSTER is items of a stratum that share something, such as a passage; it is named by its
first item, so that an item which shares nothing is its own cluster. Every function gives the same
result for the same items and seed, in any order of the items.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from backtrack.errors import ObjectiveError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MIN_ITEMS = 2
"""Items, and clusters, that each split and the first rung must have: a deviation needs two."""
NO_CLUSTERS: Mapping[str, str] = MappingProxyType({})
"""Cluster by item, of items that share nothing; an item that is missing is its own cluster."""


def stratum(item_id: str) -> str:
    """Return the part before the last slash, empty if there is none."""
    return item_id.rpartition("/")[0]


def clusters_of(item_ids: Iterable[str], clusters: Mapping[str, str]) -> tuple[str, ...]:
    """Return the cluster of each item."""
    return tuple(clusters.get(item_id, item_id) for item_id in item_ids)


def split_items(
    item_ids: Sequence[str],
    num_selection: int,
    num_report: int,
    seed: int,
    clusters: Mapping[str, str] = NO_CLUSTERS,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw disjoint selection and report items, from each stratum in proportion to its size.

    If there are fewer items than requested, all of them are split in the requested proportion. No
    cluster has items in both: of one that the end of the selection items divides, the other items
    are left out.

    Returns:
        Selection ids and report ids, each sorted.

    Raises:
        ObjectiveError: Either split would get fewer than `MIN_ITEMS` items or clusters.
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
        shuffled = _shuffled(ids, clusters, seed, "split", name)
        selection += shuffled[:first]
        divided = set(clusters_of(shuffled[:first], clusters))
        others = [item_id for item_id in shuffled if clusters.get(item_id, item_id) not in divided]
        report += others[: num - first]
    _require_clusters(selection, report, clusters)
    return tuple(sorted(selection)), tuple(sorted(report))


def _require_clusters(
    selection: Sequence[str], report: Sequence[str], clusters: Mapping[str, str]
) -> None:
    drawn = [len(set(clusters_of(ids, clusters))) for ids in (selection, report)]
    if min(drawn) < MIN_ITEMS:
        raise ObjectiveError(
            f"its clusters cannot be split: the {len(selection)} selection items would come from "
            f"{drawn[0]}, the {len(report)} report items from {drawn[1]}, and each needs at least "
            f"{MIN_ITEMS}. Add items of more clusters, or name less by `cluster`."
        )


def _shuffled(
    ids: Sequence[str], clusters: Mapping[str, str], seed: int, *names: str
) -> list[str]:
    """Shuffle the clusters of a stratum; a cluster's items stay together, in their order."""
    groups: dict[str, list[str]] = defaultdict(list)
    for item_id in ids:
        groups[clusters.get(item_id, item_id)].append(item_id)
    in_order = [groups[name] for name in sorted(groups)]
    order = named_generator(seed, *names).permutation(len(in_order))
    return [item_id for i in order for item_id in in_order[i]]


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


def nested_order(
    item_ids: Sequence[str], seed: int, clusters: Mapping[str, str] = NO_CLUSTERS
) -> tuple[str, ...]:
    """Order items so that every prefix holds each stratum in proportion to its size.

    Items of a cluster follow one another among those of their stratum.
    """
    ranked: list[tuple[float, str]] = []
    for name, ids in strata(sorted(item_ids)).items():
        shuffled = _shuffled(ids, clusters, seed, "order", name)
        ranked += [((rank + 0.5) / len(ids), each) for rank, each in enumerate(shuffled)]
    return tuple(item_id for _, item_id in sorted(ranked))


def nested_rungs(
    item_ids: Sequence[str],
    shares: Sequence[float],
    seed: int,
    batch_size: int = 1,
    clusters: Mapping[str, str] = NO_CLUSTERS,
) -> list[tuple[str, ...]]:
    """Divide items into rungs; measured up to rung `i`, a point has a share `shares[i]` of them.

    With at least four batches of items, rungs are whole batches, so that measuring rung by rung
    takes no more batches than measuring all items at once. A rung may end within a cluster.

    Args:
        item_ids: All items.
        shares: Cumulative shares, ascending, below 1; the last rung holds the remaining items.
        seed: Seed of the order.
        batch_size: Items per batch.
        clusters: Cluster by item.

    Returns:
        Disjoint sorted ids, one tuple per rung.
    """
    order = nested_order(item_ids, seed, clusters)
    unit = batch_size if len(order) >= 4 * batch_size else 1
    fewest = _num_of_clusters(clusters_of(order, clusters), MIN_ITEMS)
    ends = [max(unit * math.ceil(share * len(order) / unit), fewest) for share in shares]
    ends = [end for end in dict.fromkeys(ends) if len(order) - end >= MIN_ITEMS]
    slices = zip([0, *ends], [*ends, len(order)], strict=True)
    return [tuple(sorted(order[begin:end])) for begin, end in slices]


def _num_of_clusters(clusters: Sequence[str], num: int) -> int:
    """Count the items, from the first, that are of so many clusters; all if there are fewer."""
    seen: set[str] = set()
    for count, cluster in enumerate(clusters, 1):
        seen.add(cluster)
        if len(seen) == num:
            return count
    return len(clusters)
