"""What a selection says in words: the verdict, and the cautions beside it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack import formatting
from backtrack.selection.stats import front

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backtrack.point import Point
    from backtrack.records import Interval, Split
    from backtrack.records.selection import Constraints, Difference
    from backtrack.selection.choice.candidates import Outcome
    from backtrack.selection.stats.scores import WeightedScores

FEW_ITEMS = 50
"""Below this the intervals cover less than they say; figures in `statistics`."""


def verdict(chosen: Point, final: Point, differences: Sequence[Difference]) -> str:
    """What the report items show, in one sentence."""
    others = [
        each
        for each in differences
        if not (each.to == "base" and chosen.is_base)
        and not (each.to == "final" and chosen == final)
    ]
    said: dict[str, list[str]] = {}
    for each in others:
        utility = formatting.interval(each.utility, front.POINTS, is_signed=True, has_unit=True)
        name = f"{_name(each)} (utility {utility}{_shared(each)})"
        said.setdefault(_claim(each), []).append(name)
    subject = str(chosen)
    if chosen.is_base:
        subject = "the base is the choice: it"
    elif chosen == final:
        subject = "the final checkpoint is the choice: it"
    claims = [f"{claim} {' and '.join(names)}" for claim, names in said.items()]
    sentence = f"{subject} {' and '.join(claims)}."
    return sentence[0].upper() + sentence[1:]


def _claim(each: Difference) -> str:
    if not (_leaves_zero_out(each.utility) if each.is_clear is None else each.is_clear):
        return "cannot be told apart from"
    return "does better than" if each.utility.estimate > 0 else "does worse than"


def _shared(each: Difference) -> str:
    """Why an interval that leaves zero out is no claim: there are two comparisons."""
    is_close = _leaves_zero_out(each.utility) and each.is_clear is False
    return ", but of two comparisons" if is_close else ""


def _leaves_zero_out(value: Interval) -> bool:
    return value.low > 0 or value.high < 0


def _name(each: Difference) -> str:
    return "the final checkpoint" if each.to == "final" else "the base"


def cautions(outcome: Outcome, constraints: Constraints) -> Iterator[str]:
    """What a reader should know about the choice on the selection items."""
    weighted, decision = outcome.weighted, outcome.decision
    if decision.is_tied[outcome.base]:
        yield _tied_with_base(outcome)
    for name, yardstick in weighted.yardsticks.items():
        if front.is_degenerate(yardstick):
            yield (
                f"No point scores better on {name} than the worse of base and final checkpoint: "
                "it does not count in the utility."
            )
    if constraints.keep_gain is not None and not _gains(outcome):
        yield (
            "The final checkpoint gains nothing on the target, so keep_gain asks for the base's "
            "target score."
        )


def _gains(outcome: Outcome) -> bool:
    weighted = outcome.weighted
    target = front.role_points(
        weighted.table.means, weighted.table.setting.objectives, weighted.yardsticks, "target"
    )
    return front.gain_of(target, outcome.base, outcome.final) > 0


def _tied_with_base(outcome: Outcome) -> str:
    weighted, decision = outcome.weighted, outcome.decision
    top, base = decision.top, outcome.base
    if top == base:
        return "No point that meets the constraints has a higher utility than the base."
    gap = float(decision.smoothed[top] - decision.smoothed[base])
    needed = weighted.items_to_settle(top, base, gap)
    more = f"; about {needed} items a role would" if needed else ""
    return (
        f"The items cannot tell {weighted.table.points[top]} from the base "
        f"(utility {gap:+.1f} points){more}."
    )


def broken_on_report(
    weighted: WeightedScores, chosen: Point, base: Point, final: Point, constraints: Constraints
) -> Iterator[str]:
    """Constraints the chosen point met on the selection items but misses on the report items."""
    table = weighted.table
    column = table.column(chosen)
    for bound in weighted.bounds(table.column(base), table.column(final), constraints):
        if not bound.is_met[column]:
            reached = float(bound.values[column]) * bound.scale
            yield (
                f"On the report items {chosen} misses {bound.name} {bound.asked:g}: "
                f"it reaches {reached:.4g}."
            )


def few_items(num_items: Mapping[str, Mapping[Split, int]]) -> Iterator[str]:
    """Objectives too small for intervals that hold what they promise."""
    for name, by_split in num_items.items():
        fewest = min(by_split.values())
        if fewest < FEW_ITEMS:
            yield f"{name} has only {fewest} items a split: its intervals are rough."
