"""What is measured of a point: objectives and per-item scores."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from backtrack.point import Point
from backtrack.records.record import CurveName, Direction, Form, Record, Role, Split


class ObjectiveInfo(Record):
    """What one number about a model is.

    Attributes:
        name: Unique name in the recipe.
        role: Which side of the trade it stands for.
        kind: `lm_eval`, `examples`, `text` or `python`.
        direction: Whether more or less is better. Values are never negated.
        unit: `fraction` for scores between 0 and 1; else a label such as `nats a token`.
        weight: Share in its role's mean, relative to the role's other objectives.
        fingerprint: Digest of all that decides a score but the weights: settings, documents,
        prompts.
    """

    name: str
    role: Role
    kind: str
    direction: Direction
    unit: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    fingerprint: str


class Measurement(Record):
    """Scores of one objective's items at one point.

    Attributes:
        point: Where the model stood, spelled canonically.
        objective: What was measured.
        form: How the model stood there.
        curve: Which curve led there.
        split: Which items these are: those the search sees, or those kept for the report.
        item_ids: `stratum/item`; the part before the last slash is what the bootstrap keeps apart.
        scores: One score an item, in the objective's unit.
        distance: L2 norm of the way from the base along the curve, over the tensors that move.
        seconds: Wall time.
        origin: Who asked: `anchor`, `sampler`, `report` or `user`.
        whole: Names the set of items these are a part of; empty where they are all of it.
        num_tokens: Tokens the model read or wrote for it, padding included; none where not known.
    """

    point: Point
    objective: ObjectiveInfo
    form: Form
    curve: CurveName
    split: Split
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    distance: float
    seconds: float
    origin: str = "user"
    whole: str = ""
    num_tokens: int | None = None

    @model_validator(mode="after")
    def _pairs(self) -> Measurement:
        if len(self.item_ids) != len(self.scores):
            raise ValueError(f"{len(self.item_ids)} item ids but {len(self.scores)} scores")
        if len(set(self.item_ids)) != len(self.item_ids):
            raise ValueError("an item id stands twice")
        return self
