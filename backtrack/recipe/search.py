"""Sections on searching the path and choosing a point."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from backtrack.point import MAX_ALPHA
from backtrack.recipe.sections import Section
from backtrack.records.selection import Constraints


class ItemsSection(Section):
    """How many items an objective gives to choosing and to reporting; the two never overlap."""

    selection: Annotated[int, Field(ge=2)] = 200
    """Items the search sees."""
    report: Annotated[int, Field(ge=2)] = 200
    """Items kept for the chosen point, the base and the final checkpoint."""


ProfileKind = Literal["uniform", "safe", "min", "depth", "blocks", "modules"]
BaselineKind = Literal["checkpoint", "grid", "mean", "intruder", "truncated"]


class RacingSection(Section):
    """How a point earns its items: part after part, unless it is surely worse than the front."""

    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.125, 0.25, 0.375, 0.5, 0.75)
    """Share of the selection items after which a point is looked at; empty for no racing."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """How sure a point must be worse to be dropped, over all looks at it together."""

    @field_validator("shares")
    @classmethod
    def _ascending(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if list(shares) != sorted(set(shares)):
            raise ValueError("shares must ascend")
        return shares


class BudgetSection(Section):
    """What a search may cost; without any bound all points that stay in the race get all items."""

    items: Annotated[int, Field(ge=1)] | None = None
    """Items scored, over all points and objectives, those of earlier searches included."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens read or written by the model, likewise."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall time of this search."""


class SearchSection(Section):
    """How the path is searched."""

    alphas: tuple[Annotated[float, Field(gt=0, le=MAX_ALPHA)], ...] = tuple(
        i / 10 for i in range(1, 10)
    )
    """Strengths of the last checkpoint that are always measured, besides 0 and 1."""
    checkpoints: Annotated[int, Field(ge=0)] = 4
    """How many earlier checkpoints are always measured at full strength, evenly spaced."""
    trials: Annotated[int, Field(ge=0)] = 12
    """Points the sampler adds."""
    max_alpha: Annotated[float, Field(gt=0, le=MAX_ALPHA)] = 1.2
    """Largest strength the sampler tries."""
    profiles: Annotated[tuple[ProfileKind, ...], Field(min_length=1)] = ("uniform",)
    """Which profiles the sampler may propose; `safe` and `min` are measured at strength 1 too."""
    multipliers: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]] = (0.0, 1.0)
    """Lowest and highest multiplier of `depth`, `blocks` and `modules`."""
    sampler: Literal["gp", "tpe", "nsga2", "qmc", "random"] = "gp"
    """Optuna's sampler."""
    items: ItemsSection = ItemsSection()
    """Items an objective."""
    racing: RacingSection = RacingSection()
    """How a point earns its items."""
    budget: BudgetSection = BudgetSection()
    """What the search may cost."""
    storage: str | None = None
    """Database the workers share, such as `postgresql://host/name`; `study.db` of the run if none
    is given."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes on this machine, one a GPU where there are several."""
    patience_seconds: Annotated[int, Field(ge=4)] = 60
    """Without a sign of life for so long a worker is taken to be gone, and its work is redone."""
    baselines: tuple[BaselineKind, ...] = ("checkpoint", "grid")
    """What the choice is compared with. `mean`, `intruder` and `truncated` are no points: each
    costs all selection and report items once, outside the budget."""
    mean_of: Annotated[int, Field(ge=2)] = 3
    """How many of the last checkpoints the baseline `mean` averages."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Sequences a forward pass; fixed, since the make-up of a batch moves scores."""
    seed: int = 0
    """Of the split into items, the sampler and the bootstrap."""

    @field_validator("multipliers")
    @classmethod
    def _range(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] >= bounds[1]:
            raise ValueError("the lowest multiplier must lie below the highest")
        return bounds


class SelectSection(Constraints):
    """What is asked of the chosen point when the command line does not say."""

    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of the target in the utility; the rest is the general role's."""
