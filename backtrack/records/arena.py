"""What `backtrack arena` writes down: `arena.json`, several runs measured under one rule.

All entrants are measured on the same items by the same objectives, form by form; scores in points
are counted by one set of yardsticks, and hypervolumes in one box, so they may be compared.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from backtrack.point import Point
from backtrack.records import (
    Axis,
    BaseModelReference,
    CurveName,
    Form,
    Interval,
    Method,
    ObjectiveInfo,
    Record,
    Role,
    Split,
)
from backtrack.records.diagnosis import Correlation, Forgetting
from backtrack.records.selection import Difference, ReportRow, Yardstick

Paradigm = Literal["sft", "grpo", "adopted"]
State = Literal["waiting", "trained", "measured", "failed"]


class ArenaPoint(Record):
    """A measured point of an entrant, on the selection items.

    Attributes:
        point: Where.
        target: Score of the role, in the unit of its axis.
        general: Likewise.
        is_checkpoint: Met in training: a checkpoint at full strength.
        is_on_front: No measured point of this entrant is better on both roles.
        share: Of the selection items it was measured on.
    """

    point: Point
    target: float
    general: float
    is_checkpoint: bool
    is_on_front: bool
    share: float = 1.0


class Entrant(Record):
    """One run of an arena, under one seed.

    Attributes:
        name: In the arena; runs of one entrant under several seeds share it.
        seed: Of training; none of an adopted run.
        paradigm: How it was trained.
        method: What was trained.
        run: The run's directory, relative to the arena's where it lies in it.
        state: How far it has come.
        failure: What went wrong, where it failed.
        num_trainable: Parameters that were trained.
        num_parameters: Of the base.
        num_steps: Optimizer steps of the final checkpoint.
        form: How it stood when it was measured.
        curve: Which curve led to its points.
        points: Every measured point, in the order of measuring.
        chosen: The chosen point at the arena's weight.
        final: The last checkpoint at full strength.
        report: Scores on the report items, keyed `base`, `chosen`, `final`.
        differences: Chosen against base and final, on the report items.
        hypervolume: Share of the arena's box that the entrant's points dominate, on the selection
            items.
        verdict: What the items show, in one sentence.
        geometry: Of the final checkpoint: mean over modules by `metric` or `metric/role`; empty
            where it was not diagnosed.
        train_seconds: Wall time of training; none where it was not trained here.
        measure_seconds: Wall time of measuring.
    """

    name: str
    seed: int | None = None
    paradigm: Paradigm
    method: Method
    run: str
    state: State
    failure: str | None = None
    num_trainable: Annotated[int, Field(ge=0)] | None = None
    num_parameters: Annotated[int, Field(ge=0)] | None = None
    num_steps: int | None = None
    form: Form | None = None
    curve: CurveName | None = None
    points: tuple[ArenaPoint, ...] = ()
    chosen: Point | None = None
    final: Point | None = None
    report: dict[Literal["base", "chosen", "final"], ReportRow] = Field(default_factory=dict)
    differences: tuple[Difference, ...] = ()
    hypervolume: Interval | None = None
    verdict: str = ""
    geometry: dict[str, float] = Field(default_factory=dict)
    train_seconds: float | None = None
    measure_seconds: float | None = None

    @property
    def label(self) -> str:
        """Name and seed, for a table with several seeds."""
        return self.name if self.seed is None else f"{self.name} (seed {self.seed})"


class RankingRow(Record):
    """An entrant over all its seeds: a row of the arena's table.

    A score's interval is the entrant's own where it has one seed; over several it covers what
    items and seeds leave open, the deviation between seeds pooled over all entrants.

    Attributes:
        name: The entrant's.
        seeds: Those that were measured.
        num_failed: Seeds that failed.
        num_trainable: Parameters that were trained.
        final_target: Of the final checkpoint, on the report items, in the unit of the axis.
        final_general: Likewise.
        chosen_target: Of the chosen point.
        chosen_general: Likewise.
        gain: Utility of the chosen point less that of the final checkpoint, in points.
        hypervolume: Share of the arena's box.
    """

    name: str
    seeds: tuple[int, ...]
    num_failed: int = 0
    num_trainable: int | None = None
    final_target: Interval | None = None
    final_general: Interval | None = None
    chosen_target: Interval | None = None
    chosen_general: Interval | None = None
    gain: Interval | None = None
    hypervolume: Interval | None = None


class Arena(Record):
    """Several runs on one plane: `arena.json`.

    Attributes:
        name: The arena's.
        base: The model all entrants start from.
        weight: Of the target in the utility; the rest is the general role's.
        objectives: What was measured, at all of them.
        axes: How each role's numbers read.
        yardsticks: How each objective's score becomes points, for all entrants.
        corner: Target and general score, in points, that the box of the hypervolumes begins at.
        reach: Those that it ends at.
        base_report: Scores of the base on the report items.
        entrants: Every run, in the recipe's order, seed by seed.
        ranking: Every entrant over its seeds, in the recipe's order.
        num_items: Items by objective and split.
        correlations: Of each metric of geometry with forgetting, over entrants.
        forgetting: What the correlations are made of: the final checkpoint of each run.
        level: Of the intervals.
        notes: Cautions a reader should see.
        settings: What the arena's recipe says of training all entrants share.
        command: What made this.
        created: Time, ISO 8601 in UTC.
    """

    format_version: Literal[1] = 1
    name: str
    base: BaseModelReference
    weight: Annotated[float, Field(ge=0, le=1)]
    objectives: tuple[ObjectiveInfo, ...] = ()
    axes: dict[Role, Axis] = Field(default_factory=dict)
    yardsticks: dict[str, Yardstick] = Field(default_factory=dict)
    corner: tuple[float, float] | None = None
    reach: tuple[float, float] | None = None
    base_report: ReportRow | None = None
    entrants: tuple[Entrant, ...]
    ranking: tuple[RankingRow, ...] = ()
    num_items: dict[str, dict[Split, int]] = Field(default_factory=dict)
    correlations: tuple[Correlation, ...] = ()
    forgetting: tuple[Forgetting, ...] = ()
    level: float
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict)
    command: str = ""
    created: str
