"""Name, cluster, check and order items and scores, and digest what an objective is made of."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING

from backtrack.errors import ObjectiveError
from backtrack.recipe import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def name_items(name: str, keys: Sequence[str]) -> tuple[str, ...]:
    """Name an objective's items by keys of their own, all in the stratum `name`.

    A slash in a key is written as a colon, since what comes before it would be a stratum.
    """
    own = [key.replace("/", ":") for key in keys]
    is_distinct = len(set(own)) == len(own)
    return tuple(f"{name}/{key}" for key in (own if is_distinct else range(len(own))))


def cluster_items(item_ids: Sequence[str], shared: Sequence[str]) -> dict[str, str]:
    """Name each item's cluster by its first item; items of different strata share nothing.

    Args:
        item_ids: The items.
        shared: What each item shares with those that have the same; empty if nothing.
    """
    first: dict[tuple[str, str], str] = {}
    clusters: dict[str, str] = {}
    for item_id, key in zip(item_ids, shared, strict=True):
        if key:
            clusters[item_id] = first.setdefault((item_id.rpartition("/")[0], key), item_id)
    return clusters


def with_clusters(fingerprint: str, clusters: Mapping[str, str]) -> str:
    """Add the clusters to a fingerprint: they decide which items are drawn together."""
    return digest(fingerprint, dict(clusters)) if clusters else fingerprint


def positions(asked: Sequence[str], known: Sequence[str], name: str) -> list[int]:
    """Find the index of each requested item, in the order requested.

    Raises:
        ObjectiveError: An item is unknown, or asked for twice.
    """
    where = {item_id: index for index, item_id in enumerate(known)}
    unknown = [item_id for item_id in asked if item_id not in where]
    if unknown:
        raise ObjectiveError(
            f"{name}: {len(unknown)} items are not in its documents, first {unknown[0]!r}."
            f"{nearest(unknown[0], known)} Did the documents change since they were measured?"
        )
    if len(set(asked)) != len(asked):
        twice = next(item_id for item_id in asked if list(asked).count(item_id) > 1)
        raise ObjectiveError(f"{name}: item {twice!r} is asked for twice; ask for each item once.")
    return [where[item_id] for item_id in asked]


def in_order(asked: Sequence[int], scores: Sequence[float]) -> list[float]:
    """Reorder scores of sorted positions to the order requested."""
    by_position = dict(zip(sorted(asked), scores, strict=True))
    return [by_position[position] for position in asked]


def finite(scores: Sequence[float], item_ids: Sequence[str], name: str) -> tuple[float, ...]:
    """Check that every score is finite.

    Raises:
        ObjectiveError: A score is infinite or not a number.
    """
    for item_id, score in zip(item_ids, scores, strict=True):
        if not math.isfinite(score):
            raise ObjectiveError(
                f"{name}: the score of item {item_id!r} is {score}. "
                "Are the model's weights finite at this point?"
            )
    return tuple(float(score) for score in scores)


def digest(*parts: object) -> str:
    """Compute the sha256 of the parts as JSON with sorted keys."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
