"""Items asked for, scores given back, and the digest that tells one objective from another."""

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
    """Index of each requested item among the known ones, in the order requested.

    Raises:
        ObjectiveError: An item is unknown, or asked for twice.
    """
    where = {item_id: index for index, item_id in enumerate(known)}
    strays = [item_id for item_id in asked if item_id not in where]
    if strays:
        raise ObjectiveError(
            f"{name}: {len(strays)} items are not in its documents, first {strays[0]!r}."
            f"{nearest(strays[0], known)} Did the documents change since they were measured?"
        )
    if len(set(asked)) != len(asked):
        twice = next(item_id for item_id in asked if list(asked).count(item_id) > 1)
        raise ObjectiveError(f"{name}: item {twice!r} is asked for twice; ask for each item once.")
    return [where[item_id] for item_id in asked]


def in_order(asked: Sequence[int], scores: Sequence[float]) -> list[float]:
    """Scores in the order asked, from the scores of the same positions in ascending order."""
    by_position = dict(zip(sorted(asked), scores, strict=True))
    return [by_position[position] for position in asked]


def finite(scores: Sequence[float], item_ids: Sequence[str], name: str) -> tuple[float, ...]:
    """The scores, once each is known to be a number.

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
    """sha256 of the parts written as JSON with sorted keys."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
