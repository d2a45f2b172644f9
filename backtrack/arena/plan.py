"""Estimate what an arena needs before anything runs: cards, hours, disk and tokens.

Hours are those of the work alone on `CARD`, at the shares of its peaks below, one entrant after
another on one card: an order of magnitude, and at most, since every example counts as long as the
recipe allows and every answer as long as its task allows. Not counted: activations, which decide
the batch that fits; loading and placing; points that racing drops early.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from backtrack.recipe import FullMethod
from backtrack.train.plan.plan import make_plan

if TYPE_CHECKING:
    from backtrack.recipe import Recipe
    from backtrack.recipe.arena import ArenaRecipe, EntrantSpec
    from backtrack.train.plan.plan import Plan

CARD = "a card of 80 GB, 989 TFLOP/s in bf16 and 3.35 TB/s"
CARD_BYTES = 80e9
USED_SHARE = 0.8
"""Share of a card's memory for weights, gradients and the optimizer; activations have the rest."""
FLOPS = 0.4 * 989e12
"""In training."""
BYTES_PER_SECOND = 0.5 * 3.35e12
"""In generation, where each step reads all weights."""
NUM_AT_ONCE = 64
"""Answers that are generated at once."""


@dataclass(frozen=True)
class EntrantPlan:
    """What one entrant needs; None for what cannot be known before.

    Attributes:
        label: The entrant's name, with its seed if there are several.
        num_cards: Cards that its weights, gradients and optimizer take at once.
        num_steps: Optimizer steps.
        disk_bytes: Plain checkpoints and the state for resuming.
        train_tokens: Tokens trained on, and under GRPO generated, at most.
        train_hours: Hours of training on one card.
        measure_tokens: Tokens read and written over all points, at most.
        measure_hours: Hours of measuring on one card.
    """

    label: str
    num_cards: int | None
    num_steps: int | None
    disk_bytes: int | None
    train_tokens: int | None
    train_hours: float | None
    measure_tokens: int | None
    measure_hours: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_arena(recipe: ArenaRecipe) -> tuple[list[EntrantPlan], list[str]]:
    """Estimate each entrant's needs; also the notes on them, each once."""
    plans, notes = [], dict[str, None]()
    for spec in recipe.entrants:
        plan = make_plan(spec.recipe)
        plans.append(_of_entrant(spec, plan))
        notes |= dict.fromkeys(plan.notes)
    return plans, list(notes)


def _of_entrant(spec: EntrantSpec, plan: Plan) -> EntrantPlan:
    is_trained = spec.run is None and spec.like is None
    trained = _train_tokens(spec.recipe, plan) if is_trained else 0
    measured = _measure_tokens(spec.recipe, plan)
    weights = plan.num_parameters
    train_hours = measure_hours = None
    if weights is not None and trained is not None:
        train_hours = _train_seconds(spec.recipe, weights, trained) / 3600
    if weights is not None and measured is not None:
        measure_hours = _written_seconds(weights, measured) / 3600
    return EntrantPlan(
        label=spec.label,
        num_cards=_num_cards(plan),
        num_steps=plan.num_steps if is_trained else 0,
        disk_bytes=_disk_bytes(plan) if is_trained else 0,
        train_tokens=trained,
        train_hours=train_hours,
        measure_tokens=measured,
        measure_hours=measure_hours,
    )


def _disk_bytes(plan: Plan) -> int | None:
    if plan.trajectory_bytes is None or plan.state_bytes is None:
        return None
    return plan.trajectory_bytes + plan.state_bytes


def _num_cards(plan: Plan) -> int | None:
    if plan.memory_bytes is None:
        return None
    return math.ceil(plan.memory_bytes / (USED_SHARE * CARD_BYTES))


def _train_tokens(recipe: Recipe, plan: Plan) -> int | None:
    """Sequences of all steps, times the longest that is allowed."""
    settings = recipe.trainer_settings
    if plan.num_steps is None:
        return None
    sequences = int(settings.get("per_device_train_batch_size", 8)) * int(
        settings.get("gradient_accumulation_steps", 1)
    )
    length = "max_length" if recipe.grpo is None else "max_completion_length"
    default = 1024 if recipe.grpo is None else 256
    return plan.num_steps * sequences * int(settings.get(length) or default)


def _measure_tokens(recipe: Recipe, plan: Plan) -> int | None:
    """All points on the selection items, and three on the report items."""
    if plan.evaluation_tokens is None:
        return None
    search = recipe.search
    num_points = 2 + len(search.alphas) + 2 * search.checkpoints + search.trials
    report = 3 * search.items.report / search.items.selection
    return round(plan.evaluation_tokens * (num_points + report))


def _train_seconds(recipe: Recipe, num_weights: int, num_tokens: int) -> float:
    """Seconds of 2 FLOP a weight and token forward, and as much for each of the passes behind.

    Those are one for the inputs' gradients, one for the weights' where they are trained, and one
    more forward with gradient checkpointing. GRPO generates its tokens first.
    """
    passes = 2 + isinstance(recipe.method, FullMethod)
    passes += bool(recipe.trainer_settings.get("gradient_checkpointing"))
    seconds = 2.0 * passes * num_weights * num_tokens / FLOPS
    return seconds + (0 if recipe.grpo is None else _written_seconds(num_weights, num_tokens))


def _written_seconds(num_weights: int, num_tokens: int) -> float:
    """Seconds to generate tokens by weights of two bytes."""
    return num_tokens / NUM_AT_ONCE * 2 * num_weights / BYTES_PER_SECOND
