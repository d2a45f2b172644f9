"""The claims of a selection in words: the verdict on report items, and cautions. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from backtrack import formatting
from backtrack.selection.choice.rule import INDIFFERENCE
from backtrack.selection.stats.utility import POINTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backtrack.point import Point
    from backtrack.records import Interval
    from backtrack.records.selection import Constraints, Difference
    from backtrack.selection.choice.candidates import Outcome
    from backtrack.selection.stats.scores import WeightedScores
    from backtrack.selection.stats.table import SplitSetting

FEW_ITEMS = 50
"""With fewer items, intervals cover less often than their level; figures in `stats.bootstrap`."""
_NO_KNEE = 0.05
"""Points of utility above the ends of the front that are shown as none."""


def verdict(
    chosen: Point, final: Point, differences: Sequence[Difference], cautious: Point | None = None
) -> str:
    """Say what the report items show and, where they show nothing, how many items would.

    Args:
        chosen: The chosen point.
        final: The final checkpoint.
        differences: Chosen against base and final, on the report items.
        cautious: What the cautious rule takes.
    """
    own_end = "base" if chosen.is_base else "final" if chosen == final else None
    compared = [difference for difference in differences if difference.to != own_end]
    ends_by_claim: dict[str, list[str]] = {}
    for difference in compared:
        gain = formatting.interval(difference.utility, POINTS, is_signed=True, has_unit=True)
        end = f"{_name(difference)} (utility {gain}{_reason(difference)})"
        ends_by_claim.setdefault(_claim(difference), []).append(end)
    subject = str(chosen)
    if chosen.is_base:
        subject = "the base is the choice: it"
    elif chosen == final:
        subject = "the final checkpoint is the choice: it"
    claims = [f"{claim} {' and '.join(ends)}" for claim, ends in ends_by_claim.items()]
    sentence = f"{subject} {' and '.join(claims)}."
    unclear = [difference for difference in compared if not _is_claim(difference)]
    return sentence[0].upper() + sentence[1:] + _unsettled(chosen, unclear, cautious)


def _unsettled(chosen: Point, unclear: Sequence[Difference], cautious: Point | None) -> str:
    """Say how many items would settle what is unclear, and what the cautious rule takes."""
    needed = [f"{d.items_to_settle:,} from {_name(d)}" for d in unclear if d.items_to_settle]
    said = f" About so many items a role would tell it: {', '.join(needed)}." if needed else ""
    if unclear and cautious is not None and cautious != chosen:
        said += f" The cautious rule takes {'the base' if cautious.is_base else cautious}."
    return said


def _is_claim(difference: Difference) -> bool:
    is_clear = difference.is_clear
    return _excludes_zero(difference.utility) if is_clear is None else is_clear


def _claim(difference: Difference) -> str:
    if not _is_claim(difference):
        return "cannot be told apart from"
    return "does better than" if difference.utility.estimate > 0 else "does worse than"


def _reason(difference: Difference) -> str:
    """Say why an interval that excludes zero is no claim: two comparisons share the level."""
    is_close = _excludes_zero(difference.utility) and difference.is_clear is False
    return ", but of two comparisons" if is_close else ""


def _excludes_zero(value: Interval) -> bool:
    return value.low > 0 or value.high < 0


def _name(difference: Difference) -> str:
    return "the final checkpoint" if difference.to == "final" else "the base"


def cautions(outcome: Outcome, constraints: Constraints) -> Iterator[str]:
    """List what a reader should know about the choice on the selection items."""
    if outcome.decision.is_tied[outcome.base]:
        yield _tied_with_base(outcome)
    yield from _bound_not_shown(outcome, constraints)
    target = outcome.scores.bounded_role("target")
    if constraints.keep_gain is not None and not target.gain(outcome.base, outcome.final):
        yield (
            "The final checkpoint gains nothing on the target, so keep_gain requires the base's "
            "target score."
        )


def _bound_not_shown(outcome: Outcome, constraints: Constraints) -> Iterator[str]:
    """Say which bounds leave only the base, and how many items could show them elsewhere."""
    others = np.arange(len(outcome.is_feasible)) != outcome.base
    if not outcome.bounds or outcome.is_feasible[others].any():
        return
    confidence = f"{constraints.bound_confidence:.4g}"
    for bound in outcome.bounds:
        if bound.is_met[others].any():
            continue
        needed = bound.items_needed[others].min()
        could = (
            f"about {round(needed):,} items could"
            if np.isfinite(needed)
            else "by their scores none meets it"
        )
        yield (
            f"The items show {bound.name} {bound.requested:g} at no point but the base "
            f"(confidence {confidence}, {bound.num_items:,} items): {could}."
        )


def _tied_with_base(outcome: Outcome) -> str:
    decision = outcome.decision
    top, base = decision.top, outcome.base
    if top == base:
        measured = "point that meets the bounds" if outcome.bounds else "measured point"
        return f"No {measured} has a higher utility than the base."
    gap = float(decision.smoothed[top] - decision.smoothed[base])
    needed = outcome.weighted.items_to_settle(top, base, gap)
    setting = outcome.scores.table.setting
    counts = Counter[str]()
    for objective in setting.objectives:
        counts[objective.role] += len(setting.item_ids[objective.name])
    is_more = needed is not None and needed > min(counts.values())
    more = f"; about {needed:,} items a role would" if is_more else ""
    return (
        f"The items cannot tell {outcome.scores.table.points[top]} from the base "
        f"(utility {gap:+.1f} points){more}."
    )


def knee_note(outcome: Outcome) -> str:
    """Say where the weight of the knee comes from, and whether the choice is the knee."""
    points, decision = outcome.scores.table.points, outcome.decision
    roles, front = outcome.scores.smoothed.smoothed, list(outcome.front)
    if not np.ptp(roles[:, front], axis=1).all():
        return (
            "No point of the front trades one role for the other, so there is no knee: "
            f"the weight is {outcome.weighted.weight:.2f}."
        )
    ends = [front[int(scores[front].argmax())] for scores in roles]
    said = f"At weight {outcome.weighted.weight:.2f} both ends of the front have the same utility"
    above = float(decision.smoothed[decision.top] - decision.smoothed[ends].max())
    if above < _NO_KNEE:
        return f"{said}, and no point between them has more: the front has no knee."
    knee = f"{said}; its knee, {points[decision.top]}, has {above:.1f} points more"
    if decision.chosen == decision.top:
        return f"{knee} and is the choice."
    return f"{knee}. The choice is nearer to the base: {_why_not_top(outcome)}."


def _why_not_top(outcome: Outcome) -> str:
    """Say why the rule takes another point than the top."""
    decision, base = outcome.decision, outcome.base
    below = float(decision.smoothed[decision.top] - decision.smoothed[decision.chosen])
    if decision.chosen == base and below > INDIFFERENCE:
        return "the knee does not lead it by enough"
    return f"its utility is only {below:.1f} points lower"


def broken_on_report(
    weighted: WeightedScores, chosen: Point, base: Point, final: Point, constraints: Constraints
) -> Iterator[str]:
    """List the bounds that the chosen point misses on the report items."""
    table = weighted.scores.table
    column = table.column(chosen)
    ends = table.column(base), table.column(final)
    for bound in weighted.scores.bounds(*ends, constraints):
        if not bound.is_reached[column]:
            reached = float(bound.values[column]) * bound.scale
            yield (
                f"On the report items {chosen} misses {bound.name} {bound.requested:g}: "
                f"it reaches {reached:.4g}."
            )


def few_items(splits: Sequence[SplitSetting]) -> Iterator[str]:
    """Name the objectives with too few items, or clusters, for intervals to keep their level."""
    few = list(_few_items(splits))
    if few:
        yield f"Intervals are rough where items are few: {', '.join(few)}."


def _few_items(splits: Sequence[SplitSetting]) -> Iterator[str]:
    for name in splits[0].item_ids:
        num_items = min(len(split.item_ids[name]) for split in splits)
        num_clusters = min(len(set(split.item_clusters[name])) for split in splits)
        if num_clusters < FEW_ITEMS:
            items = f"{num_items} items"
            counted = items if num_clusters == num_items else f"{num_clusters} clusters ({items})"
            yield f"{name} {counted}"
