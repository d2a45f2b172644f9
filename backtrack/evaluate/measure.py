"""Measure one objective at the point where an engine's model is, as a record."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from backtrack.errors import ObjectiveError
from backtrack.records import FRACTION, Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.evaluate.engine import Engine
    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.point import Point
    from backtrack.records import ObjectiveInfo, Split


def measure(  # noqa: PLR0913  # the last four are facts of the record
    objective: Objective,
    engine: Engine,
    item_ids: Sequence[str],
    *,
    split: Split,
    origin: str,
    setting: str,
    checkpoint: str,
) -> Measurement:
    """Scores of `item_ids` at the engine's current point.

    Args:
        objective: What is measured.
        engine: Whose model is asked.
        item_ids: Which items.
        split: What the items are for.
        origin: Who asks; see `Measurement`.
        setting: What the setting names the objective by; see `Measurement`.
        checkpoint: Digest of the point's checkpoint; empty at the base.

    Raises:
        ObjectiveError: The items cannot be scored, or a score is missing, not finite, or outside
            its unit.
    """
    begin, tokens_before = time.perf_counter(), engine.language_model.num_tokens
    scores = objective.measure(engine.language_model, item_ids)
    require_scores(objective.info, engine.point, item_ids, scores)
    num_tokens = engine.language_model.num_tokens - tokens_before
    return Measurement(
        point=engine.point,
        checkpoint=checkpoint,
        setting=setting,
        objective=objective.info,
        form=engine.form,
        curve=engine.curve,
        split=split,
        item_ids=tuple(item_ids),
        scores=tuple(float(score) for score in scores),
        distance=engine.distance(engine.point),
        seconds=time.perf_counter() - begin,
        origin=origin,
        num_tokens=num_tokens or None,
    )


def require_scores(
    info: ObjectiveInfo, where: Point | str, item_ids: Sequence[str], scores: Sequence[float]
) -> None:
    """Refuse scores that are not one finite number per item, and fractions outside [0, 1].

    Raises:
        ObjectiveError: Names the objective, the item and where it was measured.
    """
    name = info.name
    if len(scores) != len(item_ids):
        raise ObjectiveError(
            f"objective {name!r} gave {len(scores)} scores for {len(item_ids)} items at {where}. "
            "Return one score per item, in the items' order."
        )
    for item_id, score in zip(item_ids, scores, strict=True):
        if not math.isfinite(score):
            raise ObjectiveError(
                f"objective {name!r} gave {score} for item {item_id!r} at {where}. "
                "Scores must be finite: bound them, or lower `search.max_alpha`."
            )
        if info.unit == FRACTION and not 0 <= score <= 1:
            raise ObjectiveError(
                f"objective {name!r} gave {score:g} for item {item_id!r} at {where}, but a "
                "`fraction` lies between 0 and 1. Give it another `unit`, and "
                "`range: [worst, best]`: the scores that count as 0 and 100 points."
            )
