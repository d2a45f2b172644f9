"""Records of measurements: objectives and per-item scores."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from backtrack.point import Point
from backtrack.records.record import CurveName, Direction, Form, Record, Role, Split

FRACTION = "fraction"
NATS = "nats a token"
BITS = "bits a byte"
"""Units with a scale of their own; any other needs a range."""


class ObjectiveInfo(Record):
    """Describes an objective: one number measured from a model.

    Attributes:
        name: Unique name in the recipe.
        role: `target` or `general`.
        kind: Of its section in the recipe, such as `lm_eval` or `examples`.
        direction: Whether higher or lower is better. Values are never negated.
        unit: `fraction` for scores from 0 to 1; else a label such as `nats a token`.
        range: The scores worth 0 and 100 points, worst and best; None if the unit has a scale of
            its own.
        weight: Share in its role's mean, relative to the role's other objectives.
        fingerprint: Digest of all that decides a score except the model: settings, documents,
            prompts.
    """

    name: str
    role: Role
    kind: str
    direction: Direction
    unit: str
    range: tuple[float, float] | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    fingerprint: str


class Measurement(Record):
    """Scores of one objective's items at one point; a line of `measurements.jsonl`.

    Attributes:
        point: The measured point, in canonical form.
        checkpoint: Digest of the checkpoint's weights, see `Run.checkpoint_digest`; empty at the
            base.
        setting: What the setting names this objective by, see `Setting.digests`. Empty in lines
            that were written before settings were, which belong to none.
        objective: The measured objective.
        form: Backend that held the model at the point.
        curve: Curve along which the weights were moved.
        split: `selection` for the items that the search sees, `report` for those it never sees.
        item_ids: `stratum/item`; the bootstrap resamples within each stratum, which is the part
            before the last slash.
        scores: One score per item, in the objective's unit.
        distance: L2 norm of the weight change from the base, over the tensors that change.
        seconds: Wall time.
        origin: Source of the request: `anchor`, `sampler`, `report` or `user`.
        num_tokens: Tokens the model read or wrote, with padding; None if unknown.
    """

    model_config = ConfigDict(extra="ignore")  # fields that an older commit wrote

    point: Point
    checkpoint: str = ""
    setting: str = ""
    objective: ObjectiveInfo
    form: Form
    curve: CurveName
    split: Split
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    distance: float
    seconds: float
    origin: str = "user"
    num_tokens: int | None = None

    @model_validator(mode="after")
    def _pairs(self) -> Measurement:
        if len(self.item_ids) != len(self.scores):
            raise ValueError(f"{len(self.item_ids)} item ids but {len(self.scores)} scores")
        if len(set(self.item_ids)) != len(self.item_ids):
            raise ValueError("an item id occurs twice")
        return self
