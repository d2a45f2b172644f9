"""The record of `backtrack arena`, `arena.json`: several runs measured under one rule.

All entrants are measured on the same items by the same objectives, and hypervolumes are shares of
one box, so that entrants can be compared.
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

Paradigm = Literal["sft", "grpo", "dpo", "kto", "orpo", "adopted"]
State = Literal["waiting", "trained", "measured", "failed"]


class ArenaPoint(Record):
    """A measured point of an entrant, on the selection items.

    Attributes:
        point: The point.
        target: Target score, in the unit of its axis.
        general: General score, in the unit of its axis.
        is_checkpoint: Whether it is a checkpoint at full strength.
        is_on_front: Whether it was measured on all items and no other such point of the entrant is
            better on both roles.
        share: Share of the selection items it was measured on.
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
        name: The entrant's name, the same for its runs under several seeds.
        seed: Seed of training; None if the run was adopted.
        paradigm: How it was trained.
        method: The PEFT method.
        run: The run's directory, relative to the arena's.
        state: How far it has come.
        failure: What went wrong; None if nothing did.
        num_trainable: Number of trained parameters.
        num_parameters: Number of the base's parameters.
        num_steps: Optimizer steps of the final checkpoint.
        form: Form of the placed model when it was measured.
        curve: Curve of its points.
        points: Every measured point, in the order of measuring.
        chosen: The chosen point at the arena's weight.
        final: The last checkpoint at full strength.
        report: Scores on the report items, keyed `base`, `chosen`, `final`.
        differences: Chosen minus base and chosen minus final, on the report items.
        hypervolume: Share of the arena's box that the entrant's points dominate, on the selection
            items.
        verdict: What the report items show, in one sentence.
        geometry: Metrics of the final checkpoint, keyed `metric` or `metric/role`, means over
            modules; empty if it was not diagnosed.
        train_seconds: Wall time of training; None if it was not trained by this arena.
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
    """An entrant over all its seeds: one row of the arena's table.

    With one seed, intervals cover the uncertainty over items. With several they cover items and
    seeds, the deviation between seeds pooled over all entrants.

    Attributes:
        name: The entrant's name.
        seeds: Seeds that were measured.
        num_failed: Number of seeds that failed.
        num_trainable: Number of trained parameters.
        final_target: Target score of the final checkpoint on the report items, in the unit of the
            axis.
        final_general: General score of the final checkpoint.
        chosen_target: Target score of the chosen point.
        chosen_general: General score of the chosen point.
        gain: Utility of the chosen point minus that of the final checkpoint, in points.
        hypervolume: Share of the arena's box that the entrant's points dominate.
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
    """Several runs compared under one rule: `arena.json`.

    Attributes:
        name: The arena's name.
        base: The base model of all entrants.
        weight: Weight of the target in the utility; the general role has the rest.
        objectives: The objectives that all entrants are measured by.
        axes: Unit and direction of each role's scores.
        yardsticks: How each objective's score becomes points, for all entrants.
        corner: Lower corner of the hypervolume's box: target and general score, in points.
        reach: Upper corner of the hypervolume's box.
        base_report: Scores of the base on the report items.
        entrants: Every run, in the order of running.
        ranking: Every entrant over its seeds, in the recipe's order.
        num_items: Number of items by objective and split.
        correlations: Correlation of each geometry metric with forgetting, over entrants.
        forgetting: The values that are correlated: one final checkpoint each.
        level: Confidence level of the intervals.
        notes: Cautions for the reader.
        settings: The recipe's keys that all entrants share.
        command: The command line that wrote the record.
        created: Time of writing, ISO 8601 in UTC.
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
