"""What is written down of a choice: candidates, bounds, the report, baselines, the sweep.

Plain data like `records`, checked when read, without torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
        smoothed: The utility of smoothed scores; equals `utility` where there are too few points.
        smoothed_target: The target, smoothed over the points.
        smoothed_general: Likewise.
        target_band: Bootstrap interval of the smoothed target, low and high, in the unit of the
            axis; none in selections of older commits.
        general_band: Likewise.
        distance: From the base, see `Measurement`.
        origin: See `Measurement`.
        is_on_front: No point is better on both roles, by smoothed scores.
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
    target_band: tuple[float, float] | None = None
    general_band: tuple[float, float] | None = None


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
        is_clear: Whether the utility's interval leaves zero out at the level that the selection's
            comparisons share, so that all of them together claim a difference where there is none
            in at most 5 of 100 selections; none in selections of older commits.
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
