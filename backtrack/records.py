"""What is written down: manifests, measurements, selections. Plain data, checked when read.

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


class Yardstick(Record):
    """Turns an objective's score into points: `100 * (score - zero) / (hundred - zero)`."""

    zero: float
    hundred: float


class Candidate(Record):
    """A measured point as the selection sees it.

    Attributes:
        point: Where.
        scores: Mean score by objective, in the objective's unit.
        target: Score of the role, in the unit of its axis.
        general: Likewise.
        utility: At the chosen weight, in points.
        smoothed: The utility on the curves fitted along alpha; equals `utility` where none is
            fitted.
        smoothed_target: The target on its fitted curve, likewise.
        smoothed_general: Likewise.
        distance: From the base, see `Measurement`.
        origin: See `Measurement`.
        is_on_front: No point is better on both roles, on the fitted curves.
        is_feasible: Meets every constraint.
        is_tied: Cannot be told apart from the point of highest utility.
        chance_best: Share of bootstrap samples in which it has the highest utility.
        share: Of the selection items it was measured on. Below 1 its scores are estimates, and it
            can be chosen only from a fitted curve.
    """

    point: Point
    scores: dict[str, float]
    target: float
    general: float
    utility: float
    smoothed: float
    smoothed_target: float
    smoothed_general: float
    distance: float
    origin: str
    is_on_front: bool
    is_feasible: bool
    is_tied: bool
    chance_best: float
    share: float = 1.0


class ObjectiveBound(Record):
    """A bound on one objective: in percent where it is a fraction, else in its unit.

    Attributes:
        max_drop: How much worse than the base's its score may be.
        limit: The worst score allowed: the lowest, or the highest where less is better.
    """

    max_drop: Annotated[float, Field(ge=0)] | None = None
    limit: float | None = None


class Constraints(Record):
    """Bounds a point must meet, each in points.

    Attributes:
        max_general_drop: How far the general score may fall below the base's.
        min_target: Lowest target score.
        keep_gain: Share of the final checkpoint's gain on the target that must be kept.
        objectives: Bounds on single objectives, by name.
    """

    max_general_drop: Annotated[float, Field(ge=0)] | None = None
    min_target: float | None = None
    keep_gain: Annotated[float, Field(ge=0, le=1)] | None = None
    objectives: dict[str, ObjectiveBound] = Field(default_factory=dict)


class ReportRow(Record):
    """Scores on the report items of one of base, chosen point and final, with intervals.

    `target` and `general` are in the unit of their axes, `utility` in points; `scores` and their
    `intervals` in the unit of each objective.
    """

    point: Point
    scores: dict[str, float]
    target: Interval
    general: Interval
    utility: Interval
    intervals: dict[str, Interval] = Field(default_factory=dict)


class Difference(Record):
    """Paired difference between the chosen point and another, on the report items.

    Attributes:
        to: The other point: `base` or `final`.
        target: Chosen minus other, in the unit of the axis.
        general: Likewise.
        utility: Likewise, in points; positive is in favour of the chosen point.
        scores: Likewise for each objective, in its unit.
        items_to_settle: How many items a role would be needed for 80% power to see a utility
            difference of this size at 95%; none where the difference is zero.
    """

    to: Literal["base", "final"]
    target: Interval
    general: Interval
    utility: Interval
    items_to_settle: int | None
    scores: dict[str, Interval] = Field(default_factory=dict)


class WeightRange(Record):
    """Weights of the target, both ends included, at which one point is chosen.

    `target` and `general` are its scores on the selection items, in the unit of their axes.
    """

    low: float
    high: float
    point: Point
    target: float
    general: float


class Baseline(Record):
    """What users take without a search: a rival of the chosen point.

    Attributes:
        kind: `checkpoint`, the best checkpoint at full strength; `grid`, the best of a plain grid
            of alphas of the last one; `mean`, the average of the last checkpoints' trained
            tensors; `intruder`, PEFT's `reduce_intruder_dimension`; `truncated`, the delta's small
            singular values cut off.
        steps: The checkpoints it is made of.
        point: Where it stands on the path, if it does.
    """

    kind: Literal["checkpoint", "grid", "mean", "intruder", "truncated"]
    steps: tuple[int, ...] = ()
    point: Point | None = None

    def __str__(self) -> str:
        steps = ", ".join(str(step) for step in self.steps)
        point = self.point or Point.base()
        return {
            "checkpoint": f"best checkpoint: step {point.step}",
            "grid": f"best of the grid: alpha {point.alpha:g}",
            "mean": f"mean of steps {steps}",
            "intruder": f"intruders reduced: step {steps}",
            "truncated": f"delta truncated: step {steps}",
        }[self.kind]


class BaselineMeasurement(Record):
    """Scores of one objective's items at a baseline that is no point; a line of `baselines.jsonl`.

    Attributes:
        baseline: What was measured.
        objective: The number.
        form: How the model stood, and so how the baseline was made.
        split: Which items.
        item_ids: Likewise.
        scores: One score an item.
        seconds: Wall time.
    """

    baseline: Baseline
    objective: ObjectiveInfo
    form: Form
    split: Split
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    seconds: float


class BaselineRow(Record):
    """A baseline on the report items, and the chosen point against it.

    `target` and `general` are in the unit of their axes; `utility` and `difference`, chosen minus
    baseline in utility, in points.
    """

    baseline: Baseline
    scores: dict[str, float]
    target: Interval
    general: Interval
    utility: Interval
    difference: Interval


class Selection(Record):
    """The chosen point and all that speaks for and against it: `selection.json`.

    Attributes:
        run: The run's name.
        weight: Of the target in the utility; the rest is the general role's.
        constraints: Bounds that were asked for.
        chosen: The point.
        base: The base.
        final: The last checkpoint at full strength.
        form: How the points were measured.
        curve: Which curve led to them.
        objectives: What was measured.
        axes: How each role's numbers read.
        yardsticks: How each objective's score becomes points.
        candidates: Every measured point, in the order of measuring.
        report: Scores on the report items, keyed `base`, `chosen`, `final`.
        differences: Chosen against base and final, on the report items.
        optimism: Utility of the chosen point on selection items minus that on report items.
        num_items: Items by objective and split.
        level: Of the intervals.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap and the split.
        verdict: What the items show, in one sentence.
        notes: Cautions a reader should see.
        baselines: What users take without a search, on the report items.
        ranges: The chosen point by weight, from 0 to 1.
        hypervolume: Of the front on selection items: share of the box from the worse of base and
            final to the best seen, on both roles; none where the box is empty.
        command: What made this selection.
        created: Time, ISO 8601 in UTC.
    """

    format_version: Literal[1] = 1
    run: str
    weight: Annotated[float, Field(ge=0, le=1)]
    constraints: Constraints
    chosen: Point
    base: Point
    final: Point
    form: Form
    curve: CurveName
    objectives: tuple[ObjectiveInfo, ...]
    axes: dict[Role, Axis]
    yardsticks: dict[str, Yardstick]
    candidates: tuple[Candidate, ...]
    report: dict[Literal["base", "chosen", "final"], ReportRow]
    differences: tuple[Difference, ...]
    optimism: float
    num_items: dict[str, dict[Split, int]]
    level: float
    num_resamples: int
    seed: int
    verdict: str
    notes: tuple[str, ...] = ()
    baselines: tuple[BaselineRow, ...] = ()
    ranges: tuple[WeightRange, ...] = ()
    hypervolume: Interval | None = None
    command: str
    created: str

    @property
    def tied(self) -> tuple[Point, ...]:
        """Points that cannot be told apart from the point of highest utility."""
        return tuple(candidate.point for candidate in self.candidates if candidate.is_tied)

    def candidate(self, point: Point) -> Candidate:
        """The candidate at `point`.

        Raises:
            KeyError: The point was not measured on the selection items.
        """
        for candidate in self.candidates:
            if candidate.point == point.canonical:
                return candidate
        raise KeyError(str(point))


class SweptWeight(Record):
    """What the rule of choosing says at one weight, whatever the bounds.

    Attributes:
        weight: Of the target in the utility.
        tops: Candidates that have the highest smoothed utility under some bounds, the best first:
            the first that meets the bounds at hand is the top.
        tied: For each top the candidates that cannot be told apart from it, as bits.
        open: Likewise those of them that the rule may choose.
        smoothed: Utility on the curves fitted along alpha, in points, by candidate.
        to_base: Interval of the utility of each candidate in `Sweep.choosable` less the base's,
            low and high, in points, on the selection items.
        to_final: Likewise to the final checkpoint.
    """

    weight: float
    tops: tuple[int, ...]
    tied: tuple[str, ...]
    open: tuple[str, ...]
    smoothed: tuple[float, ...]
    to_base: tuple[tuple[float, float], ...]
    to_final: tuple[tuple[float, float], ...]


class Sweep(Record):
    """The selection at every hundredth of weight and under any bounds: `sweep.json`.

    Nothing statistical is left to do: at a weight the top is the first of `tops` that meets the
    bounds; the choice is the first of `preferred` that meets them and is `open` to that top.
    Candidates are told by their place in `Selection.candidates`. Bits are base64 of bytes, the
    lowest bit first.

    Attributes:
        created: Of the selection it belongs to.
        base: Place of the base among the candidates.
        final: Likewise of the final checkpoint.
        points: Role scores in points by candidate, which the bounds on roles are held against.
        intervals: Of the role scores by candidate, low and high, in the unit of the axis, on the
            selection items.
        preferred: All candidates, nearest the base first.
        choosable: Candidates that are the choice at some weight under some bounds.
        weights: Ascending; the selection's own is among them.
        is_whole: Tops were kept for all bounds; else only for those of each weight's best points.
    """

    created: str
    base: int
    final: int
    points: dict[Role, tuple[float, ...]]
    intervals: dict[Role, tuple[tuple[float, float], ...]]
    preferred: tuple[int, ...]
    choosable: tuple[int, ...]
    weights: tuple[SweptWeight, ...]
    is_whole: bool = True
