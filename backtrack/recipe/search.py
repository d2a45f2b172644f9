"""Recipe sections for searching the path, for who measures, and for choosing a point."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from backtrack.point import MAX_ALPHA
from backtrack.recipe.sections import Section
from backtrack.records import BatchSize
from backtrack.records.selection import Constraints


class ItemsSection(Section):
    """Items per objective for choosing and for reporting; the two never overlap."""

    selection: Annotated[int, Field(ge=2)] = 200
    """Items the search sees."""
    report: Annotated[int, Field(ge=2)] = 200
    """Items for the report only: the chosen point, the base and the final checkpoint."""


ProfileKind = Literal["uniform", "safe", "level", "min", "depth", "blocks", "modules"]
BaselineKind = Literal["checkpoint", "grid", "mean", "intruder", "truncated"]


class RacingSection(Section):
    """Racing: points are measured rung by rung, and dropped once surely worse than the front."""

    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.125, 0.25, 0.375, 0.5, 0.75)
    """Share of the selection items at the end of each rung; empty for no racing."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence that a dropped point is worse, over all its rungs together."""

    @field_validator("shares")
    @classmethod
    def _ascending(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if list(shares) != sorted(set(shares)):
            raise ValueError("shares must ascend")
        return shares


class BudgetSection(Section):
    """Limits on the cost of a search; without any, points that are not dropped get all items."""

    items: Annotated[int, Field(ge=1)] | None = None
    """Items scored, over all points and objectives; a search that goes on counts all it scored."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens read or written by the model; a search that goes on counts them all."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall time of this search."""


class SearchSection(Section):
    """How the path is searched."""

    alphas: tuple[Annotated[float, Field(gt=0, le=MAX_ALPHA)], ...] = tuple(
        i / 10 for i in range(1, 10)
    )
    """Alphas of the last checkpoint that are always measured, besides 0 and 1."""
    checkpoints: Annotated[int, Field(ge=0)] = 4
    """Earlier checkpoints, evenly spaced, that are always measured, at alphas 0.5 and 1."""
    trials: Annotated[int, Field(ge=0)] = 12
    """Points the sampler adds."""
    max_alpha: Annotated[float, Field(gt=0, le=MAX_ALPHA)] = 1.2
    """Largest alpha that the sampler tries."""
    profiles: Annotated[tuple[ProfileKind, ...], Field(min_length=1)] = ("uniform",)
    """Profiles that the sampler may propose; `safe`, `level` and `min` are also measured at
    alpha 1."""
    multipliers: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]] = (0.0, 1.0)
    """Lowest and highest multiplier of `depth`, `blocks` and `modules`."""
    sampler: Literal["gp", "tpe", "nsga2", "qmc", "random"] = "gp"
    """Optuna's sampler."""
    items: ItemsSection = ItemsSection()
    """Items per objective."""
    racing: RacingSection = RacingSection()
    """How points are dropped before they are fully measured."""
    budget: BudgetSection = BudgetSection()
    """Limits on the cost."""
    round_size: Annotated[int, Field(ge=1)] = 4
    """Evaluations that are decided together, from the same measurements, and so can be measured at
    the same time. The choice depends on it, and not on how many actors measure: give it at least
    as many."""
    storage: str | None = None
    """Database of the Optuna study, for a dashboard; default: the run's `study.db`."""
    baselines: tuple[BaselineKind, ...] = ("checkpoint", "grid")
    """Baselines of the choice. `mean`, `intruder` and `truncated` are not points on the path: each
    costs all selection and report items once, outside the budget."""
    mean_of: Annotated[int, Field(ge=2)] = 3
    """How many of the last checkpoints the baseline `mean` averages."""
    batch_size: BatchSize = "auto"
    """Sequences at a time; `auto` is what fits the memory. The same at every point, since batch
    composition changes scores slightly."""
    max_answer_bytes: Annotated[int, Field(ge=0)] = 100_000_000
    """Most bytes of what the model said that are kept beside the scores; 0 keeps nothing."""
    seed: int = 0
    """Seed of the item split, the sampler and the bootstrap."""

    @field_validator("multipliers")
    @classmethod
    def _range(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] >= bounds[1]:
            raise ValueError("the lowest multiplier must be below the highest")
        return bounds


class ClusterSection(Section):
    """Actors that measure: processes with a model each, started by Ray. In an arena, entrants."""

    actors: Annotated[int, Field(ge=1)] = 1
    """Actors that measure at the same time; 1 without `address` is this process itself. More than
    `search.round_size` are of little use."""
    address: str | None = None
    """Address of a running Ray cluster, or `auto` for the one this machine belongs to; none starts
    Ray on this machine for as long as the command runs."""
    gpus_per_actor: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of one actor; a fraction shares one. `auto` is one, or a share of one where there are
    fewer GPUs than actors, and none where the cluster has none. With two or more a model that
    does not fit on the first is spread over them, and an arena's entrant is trained by as many
    processes."""
    cpus_per_actor: Annotated[float, Field(gt=0)] = 1
    """CPUs of one actor; on a CPU, also the threads it computes by."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Further resources of Ray's that an actor takes, such as `{accelerator_type:H100: 0.001}`."""
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    """Ray's runtime environment of the actors: `pip`, `env_vars`, `working_dir` and so on."""

    @property
    def is_one_process(self) -> bool:
        """Whether this process measures by itself."""
        return self.actors == 1 and self.address is None


class SelectSection(Constraints):
    """Weight and bounds of the choice, unless the command line gives others."""

    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the target in the utility; the general role has the rest."""
    cautious: bool = False
    """Choose the base wherever the items cannot tell it from the best point."""
