"""Check and order items and scores, and digest what an objective is made of."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING

from backtrack.errors import ObjectiveError
from backtrack.recipe import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence


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
