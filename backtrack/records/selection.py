"""Records of a choice: candidates, bounds, report rows, differences, baselines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, ConfigDict, Field

from backtrack.point import Point
from backtrack.records import (
    Axis,
    CurveName,
    Form,
    Interval,
    ObjectiveInfo,
    Record,
    Role,
    Split,
)


class Yardstick(Record):
    """Convert the score of an item to points, of which more is better.

    Attributes:
        scale: `linear`: `100 * (score - zero) / (hundred - zero)`; `nats`: `100 * exp(-score)`;
            `bits`: `100 * 2^-score`.
        zero: The score worth 0 points; None if there is none.
        hundred: The score worth 100 points.
    """

    scale: Literal["linear", "nats", "bits"] = "linear"
    zero: float | None
    hundred: float


class Candidate(Record):
    """A measured point, with its scores on the selection items.

    Attributes:
        point: The point.
        scores: Mean score by objective, in the objective's unit.
        target: Target score, in the unit of its axis.
        general: General score, in the unit of its axis.
        utility: Utility at the selection's weight, in points.
        smoothed: Utility of the smoothed scores, in points; equals `utility` if there are too few
            points to smooth.
        smoothed_target: Target score smoothed over the points, in the unit of its axis.
        smoothed_general: General score smoothed over the points, in the unit of its axis.
        target_band: Bootstrap interval of the smoothed target, low and high, in the unit of the
            axis; None in older selections.
        general_band: Bootstrap interval of the smoothed general score, in the same form.
        distance: Distance from the base, see `Measurement.distance`.
        origin: What requested the point, see `Measurement.origin`.
        is_on_front: Whether no point is better on both roles, by smoothed scores.
        is_feasible: Whether it meets every bound.
        is_tied: Whether it cannot be told apart from the point of highest utility.
        chance_best: Share of bootstrap samples in which it has the highest utility.
        share: Share of the selection items it was measured on. Below 1, scores are estimates, and
            the point can be chosen only on a curve of enough strengths.
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
    target_band: tuple[float, float] | None = None
    general_band: tuple[float, float] | None = None


class ObjectiveBound(Record):
    """A bound on one objective: in percent if it is a fraction, else in its unit."""

    max_drop: Annotated[float, Field(ge=0)] | None = None
    """How much worse than the base's score the score may be."""
    worst: float | None = Field(None, validation_alias=AliasChoices("worst", "limit"))
    """The worst score allowed: the lowest, or the highest if lower is better. Earlier versions
    called it `limit`."""


class Constraints(Record):
    """Bounds a point must meet, each in points."""

    bound_confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """One-sided confidence with which the items must show a bound to be met."""
    max_general_drop: Annotated[float, Field(ge=0)] | None = None
    """How far the general score may fall below the base's."""
    min_target: float | None = None
    """Lowest target score."""
    keep_gain: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the final checkpoint's gain on the target that must be kept."""
    objectives: dict[str, ObjectiveBound] = Field(default_factory=dict)
    """Bounds on single objectives, by name."""


class ReportRow(Record):
    """Scores of one point (base, chosen or final) on the report items, with intervals.

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
        target: Target of chosen minus other, in the unit of the axis.
        general: General score of chosen minus other, in the unit of the axis.
        utility: Utility of chosen minus other, in points; positive favours the chosen point.
        scores: Score of chosen minus other by objective, in the objective's unit.
        items_to_settle: Items per role needed for 80% power to detect a utility difference of this
            size at 95%; None if the difference is zero.
        is_clear: Whether the utility's interval excludes zero at the level shared by the
            selection's comparisons, so that all of them together claim a difference where there is
            none in at most 5 of 100 selections; None in older selections.
    """

    to: Literal["base", "final"]
    target: Interval
    general: Interval
    utility: Interval
    items_to_settle: int | None
    scores: dict[str, Interval] = Field(default_factory=dict)
    is_clear: bool | None = None


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
    """A model that users take without a search, compared with the chosen point.

    Attributes:
        kind: `checkpoint`, the best checkpoint at full strength; `grid`, the best of a plain grid
            of alphas of the last one; `mean`, the average of the last checkpoints' trained
            tensors; `intruder`, PEFT's `reduce_intruder_dimension`; `truncated`, the delta's small
            singular values cut off.
        steps: Steps of the checkpoints it is made of, if it is no point.
        point: The point; None if it is no point of the path.
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
    """Scores of one objective at a baseline that is no point; a line of `baselines.jsonl`.

    Attributes:
        baseline: The baseline.
        checkpoints: Digests of the checkpoints it was made of, in order of the steps.
        setting: What the setting names this objective by, see `Setting.digests`.
        objective: The objective.
        split: Which of the items: `selection` or `report`.
        item_ids: Ids of the items.
        scores: One score per item, in the objective's unit.
        seconds: Wall time.
    """

    model_config = ConfigDict(extra="ignore")  # fields that an older commit wrote

    baseline: Baseline
    checkpoints: tuple[str, ...] = ()
    setting: str = ""
    objective: ObjectiveInfo
    split: Split
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    seconds: float


class BaselineRow(Record):
    """Scores of a baseline on the report items, compared with the chosen point.

    `target` and `general` are in the unit of their axes; `utility` and `difference`, chosen minus
    baseline in utility, in points; `misses` names the bounds that it does not reach.
    """

    baseline: Baseline
    scores: dict[str, float]
    target: Interval
    general: Interval
    utility: Interval
    difference: Interval
    misses: tuple[str, ...] = ()


class Selection(Record):
    """The chosen point, its alternatives and the evidence: `selection.json`.

    Attributes:
        run: Name of the run.
        weight: Weight of the target in the utility; the rest is the general role's.
        constraints: Bounds the user set.
        chosen: The chosen point.
        is_cautious: Whether it was chosen by the cautious rule.
        cautious: What the cautious rule takes; None in older selections.
        base: The base.
        final: The last checkpoint at full strength.
        form: Backend that held the model at the points.
        curve: How weights move with alpha.
        settings: What measurements name the setting by, for each objective's name.
        checkpoints: Digest of each candidate's checkpoint, by step.
        changes: Where the recipe of choosing comes from and what was set on command lines; empty
            for that of training.
        objectives: The measured objectives.
        axes: Unit and direction of each role.
        yardsticks: Conversion of the scores of each objective's items to points.
        candidates: Every measured point, in the order of measuring.
        report: Scores on the report items, keyed `base`, `chosen`, `final`.
        differences: Chosen against base and final, on the report items.
        optimism: Utility of the chosen point minus the base's, on selection items, less the same
            on report items: how hard the items are does not count.
        num_items: Items by objective and split.
        level: Level of the intervals.
        num_resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap and of the split into items.
        verdict: What the report items show, in one sentence.
        notes: Cautions for the reader.
        baselines: Baselines on the report items.
        ranges: The chosen point by weight, from 0 to 1.
        hypervolume: Hypervolume of the front on the selection items, as a share of the box from
            the worse of base and final to the best score on both roles; None if the box is empty.
        command: The command that made this selection.
        created: Time of creation, ISO 8601 in UTC.
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
    settings: dict[str, str] = Field(default_factory=dict)
    checkpoints: dict[int, str] = Field(default_factory=dict)
    changes: tuple[str, ...] = ()
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
    is_cautious: bool = False
    cautious: Point | None = None

    @property
    def tied(self) -> tuple[Point, ...]:
        """Points that cannot be told apart from the point of highest utility."""
        return tuple(candidate.point for candidate in self.candidates if candidate.is_tied)

    @property
    def has_ties(self) -> bool:
        """Whether any point but that of highest utility is tied with it."""
        return len(self.tied) > 1

    @property
    def apart_from_role(self) -> tuple[int, ...]:
        """Indices of the objectives whose score is not their role's.

        The role has others too, or the score counts in it as the points it is worth.
        """
        roles = [objective.role for objective in self.objectives]
        return tuple(
            i
            for i, o in enumerate(self.objectives)
            if roles.count(o.role) > 1 or self.axes[o.role].unit not in ("%", o.unit)
        )

    def candidate(self, point: Point) -> Candidate:
        """Return the candidate at `point`.

        Raises:
            KeyError: The point was not measured on the selection items.
        """
        for candidate in self.candidates:
            if candidate.point == point.canonical:
                return candidate
        raise KeyError(str(point))
