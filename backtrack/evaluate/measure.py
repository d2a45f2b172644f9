"""Measure one objective where a model stands, as a record."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from backtrack.errors import ObjectiveError
from backtrack.evaluate.served import Served
from backtrack.records import Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backtrack.evaluate.objectives.objective import Objective
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
    objective: Objective,
    standing: Standing,
    item_ids: Sequence[str],
    *,
    split: Split,
    origin: str,
    whole: str = "",
) -> Measurement:
    """Scores of `item_ids` where the model stands now. The objective itself never sees the point.

    Args:
        objective: The number.
        standing: The model.
        item_ids: Which items.
        split: What they are for.
        origin: Who asks.
        whole: Names the set of items these are a part of, if they are.

    Raises:
        ObjectiveError: The items cannot be scored, or a score is missing or not finite.
    """
    begin = time.perf_counter()
    with counting_tokens(standing.model) as tokens:
        scores = objective.measure(standing.model, standing.tokenizer, item_ids)
    require_scores(objective.info.name, standing.point, item_ids, scores)
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
        whole=whole,
        num_tokens=sum(tokens) if tokens else None,
    )


@contextmanager
def counting_tokens(model: Any) -> Iterator[list[int]]:
    """Token ids looked up in the model's embedding, padding included: one number a forward pass.

    An objective that feeds the model embeddings, or none at all, is not counted. Of a served
    model: tokens of prompts and answers, without padding.
    """
    passes: list[int] = []
    if isinstance(model, Served):
        before = model.num_tokens
        yield passes
        passes.append(model.num_tokens - before)
        return
    import torch

    if not isinstance(model, torch.nn.Module):
        yield passes
        return
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    hook = embedding.register_forward_hook(
        lambda _module, inputs, _output: passes.append(inputs[0].numel())
    )
    try:
        yield passes
    finally:
        hook.remove()


def require_scores(
    name: str, where: Point | str, item_ids: Sequence[str], scores: Sequence[float]
) -> None:
    """Refuse scores that are not one finite number an item.

    Raises:
        ObjectiveError: Names the objective, the item and where the model stands.
    """
    if len(scores) != len(item_ids):
        raise ObjectiveError(
            f"objective {name!r} gave {len(scores)} scores for {len(item_ids)} items at {where}. "
            "Return one score an item, in the items' order."
        )
    for item_id, score in zip(item_ids, scores, strict=True):
        if not math.isfinite(score):
            raise ObjectiveError(
                f"objective {name!r} gave {score} for item {item_id!r} at {where}. "
                "Scores must be finite: bound them, or lower `search.max_alpha`."
            )
