"""Measure one objective where a model stands, as a record."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Protocol

from backtrack.errors import ObjectiveError
from backtrack.records import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.evaluate.objective import Objective
    from backtrack.point import Point
    from backtrack.records import CurveName, Form, Split


class Standing(Protocol):
    """A model that stands at a point, as `backtrack.path.placement.Placement` does."""

    model: Any
    tokenizer: Any
    form: Form
    curve: CurveName
    point: Point

    def distance(self, point: Point) -> float: ...


def measure(
    objective: Objective, standing: Standing, item_ids: Sequence[str], *, split: Split, origin: str
) -> Measurement:
    """Scores of `item_ids` where the model stands now. The objective itself never sees the point.

    Raises:
        ObjectiveError: The items cannot be scored, or a score is missing or not finite.
    """
    begin = time.perf_counter()
    scores = objective.measure(standing.model, standing.tokenizer, item_ids)
    _require_scores(objective.info.name, standing.point, item_ids, scores)
    return Measurement(
        point=standing.point,
        objective=objective.info,
        form=standing.form,
        curve=standing.curve,
        split=split,
        item_ids=tuple(item_ids),
        scores=tuple(float(score) for score in scores),
        distance=standing.distance(standing.point),
        seconds=time.perf_counter() - begin,
        origin=origin,
    )


def _require_scores(
    name: str, point: Point, item_ids: Sequence[str], scores: Sequence[float]
) -> None:
    if len(scores) != len(item_ids):
        raise ObjectiveError(
            f"objective {name!r} gave {len(scores)} scores for {len(item_ids)} items at {point}. "
            "Return one score an item, in the items' order."
        )
    for item_id, score in zip(item_ids, scores, strict=True):
        if not math.isfinite(score):
            raise ObjectiveError(
                f"objective {name!r} gave {score} for item {item_id!r} at {point}. "
                "Scores must be finite: bound them, or lower `search.max_alpha`."
            )
