"""Measure one objective where a model stands, as a record."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

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
        ObjectiveError: The items cannot be scored.
    """
    begin = time.perf_counter()
    scores = objective.measure(standing.model, standing.tokenizer, item_ids)
    return Measurement(
        point=standing.point,
        objective=objective.info,
        form=standing.form,
        curve=standing.curve,
        split=split,
        item_ids=tuple(item_ids),
        scores=tuple(scores),
        distance=standing.distance(standing.point),
        seconds=time.perf_counter() - begin,
        origin=origin,
    )
