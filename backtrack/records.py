"""What is written down of a run: manifest, checkpoints, measurements. Plain data, checked.

Every record is a frozen pydantic model, so a file edited by hand or cut short is refused with the
field that is wrong. Nothing here imports torch: a report is drawn on a laptop from these alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from backtrack.point import Point

Role = Literal["target", "general"]
Direction = Literal["maximize", "minimize"]
Form = Literal["attached", "merged"]
CurveName = Literal["native", "line"]
Split = Literal["selection", "report"]
Storage = Literal["plain", "coded", "dcp", "zero", "shards"]
ROLES: tuple[Role, ...] = ("target", "general")


class Record(BaseModel):
    """Base of every record; abstract."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseModelReference(Record):
    """Where the base is and what it is.

    Attributes:
        model: Hub name, or a folder.
        revision: Hub revision; none is the default branch.
        dtype: Type the weights are loaded in; `auto` is the type of the files.
        trust_remote_code: Whether code from the model's repository may run.
        quantization: How bitsandbytes quantizes it on loading; none is as its files are.
        fingerprint: sha256 of each tensor's bytes, type and shape, by name; empty where the files
            were not at hand.
    """

    model: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False
    quantization: Literal["4bit", "8bit"] | None = None
    fingerprint: dict[str, str] = Field(default_factory=dict)


class Method(Record):
    """How a run was trained: `kind` is `full` or PEFT's type in lower case (`lora`, `oft`)."""

    kind: str
    settings: dict[str, Any] = Field(default_factory=dict)


class Manifest(Record):
    """What a run is.

    Attributes:
        format_version: Version of the directory's layout.
        name: The run's name.
        base: The model before training.
        method: How it was trained.
        seed: Seed of training; none where an adopted run does not say.
        versions: Version of each library that wrote it, by name.
        source: Folder an adopted run's checkpoints lie in; none for a run trained here.
        initial: Adapter saved before the first step, where its initialization rewrote the base.
        created: Time of creation, ISO 8601 in UTC.
    """

    format_version: Literal[1] = 1
    name: str
    base: BaseModelReference
    method: Method
    seed: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    source: str | None = None
    initial: str | None = None
    created: str


class CheckpointEntry(Record):
    """One line of `trajectory/index.jsonl`.

    Attributes:
        step: Optimizer step.
        folder: Folder of the weights: relative to `trajectory/`, or absolute in an adopted run.
        num_bytes: Size of the weight files.
        sha256: Digest of each weight file, by file name.
        train_loss: Loss logged last before the step.
        storage: How the weights are kept: `plain` safetensors; `coded` against another step (see
            `backtrack.run.codec`); or as another trainer left them: torch's distributed checkpoint
            (`dcp`), DeepSpeed ZeRO (`zero`), shards saved by each process (`shards`).
        reference: Step a coded checkpoint is coded against; none for a key frame.
        source: Folder another trainer's weights lie in, where it is not `folder`.
        distance: Way from the start of training, in shares of the start's norm, where the cadence
            is by distance.
        is_dropped: The step was given up for the budget; a later line may take it again.
    """

    step: Annotated[int, Field(ge=1)]
    folder: str
    num_bytes: Annotated[int, Field(ge=0)]
    sha256: dict[str, str]
    train_loss: float | None = None
    storage: Storage = "plain"
    reference: int | None = None
    source: str | None = None
    distance: float | None = None
    is_dropped: bool = False

    @model_validator(mode="after")
    def _older_reference(self) -> CheckpointEntry:
        if self.reference is not None and self.reference >= self.step:
            raise ValueError(f"step {self.step} cannot be coded against step {self.reference}")
        return self


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


class Interval(Record):
    """An estimate with its two-sided bootstrap interval."""

    estimate: float
    low: float
    high: float


class Axis(Record):
    """How a role's numbers read: unit and direction."""

    unit: str
    direction: Direction
