"""The table of entrants over their seeds, and what each entrant has forgotten. Pure.

An interval over several seeds adds two half-widths in quadrature: the mean bootstrap half-width
over items, since all seeds share the items, and Student's half-width over seeds. Two or three
seeds say little about their own spread, so the deviation between seeds is POOLED over all
entrants: it is assumed to be the same for each, with as many degrees of freedom as there are seeds
beyond each entrant's first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from backtrack.records import Interval
from backtrack.records.arena import RankingRow
from backtrack.records.diagnosis import Forgetting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backtrack.records import Axis, Role
    from backtrack.records.arena import Entrant

COLUMNS = (
    "final_target", "final_general", "chosen_target", "chosen_general", "gain", "hypervolume"
)  # fmt: skip
"""Scores of a `RankingRow`."""


def make_ranking(entrants: Sequence[Entrant]) -> tuple[RankingRow, ...]:
    """One row for each name, in the recipe's order."""
    names = dict.fromkeys(entrant.name for entrant in entrants)
    groups = {name: [e for e in entrants if e.name == name] for name in names}
    columns = {
        column: {name: _values(group, column) for name, group in groups.items()}
        for column in COLUMNS
    }
    spreads = {column: pooled(list(by_name.values())) for column, by_name in columns.items()}
    return tuple(
        _row(name, group, {c: over_seeds(columns[c][name], spreads[c]) for c in COLUMNS})
        for name, group in groups.items()
    )


def _row(
    name: str, entrants: Sequence[Entrant], scores: Mapping[str, Interval | None]
) -> RankingRow:
    measured = [entrant for entrant in entrants if entrant.state == "measured"]
    trainable = [e.num_trainable for e in measured if e.num_trainable is not None]
    return RankingRow.model_validate(
        {
            "name": name,
            "seeds": tuple(e.seed for e in measured if e.seed is not None),
            "num_failed": sum(entrant.state == "failed" for entrant in entrants),
            "num_trainable": trainable[0] if trainable else None,
            **scores,
        }
    )


def _values(entrants: Sequence[Entrant], column: str) -> list[Interval]:
    """Scores of one column, one for each measured seed."""
    measured = [entrant for entrant in entrants if entrant.state == "measured"]
    match column:
        case "hypervolume":
            return [e.hypervolume for e in measured if e.hypervolume is not None]
        case "gain":
            return [d.utility for e in measured for d in e.differences if d.to == "final"]
        case _:
            which, _, role = column.partition("_")
            rows = [e.report["final" if which == "final" else "chosen"] for e in measured]
            return [row.target if role == "target" else row.general for row in rows]


class Spread(NamedTuple):
    """Standard deviation between seeds, and its degrees of freedom."""

    deviation: float
    freedom: int


def pooled(groups: Sequence[Sequence[Interval]]) -> Spread | None:
    """Pool the deviation between seeds over all entrants; None if no entrant has two seeds."""
    squares, freedom = 0.0, 0
    for values in groups:
        if len(values) > 1:
            estimates = np.array([value.estimate for value in values])
            squares += float(((estimates - estimates.mean()) ** 2).sum())
            freedom += len(values) - 1
    return Spread(math.sqrt(squares / freedom), freedom) if freedom else None


def over_seeds(values: Sequence[Interval], spread: Spread | None) -> Interval | None:
    """Mean over seeds with its interval over items and seeds; one seed keeps its own interval."""
    if len(values) < 2 or spread is None:
        return values[0] if values else None
    from scipy.stats import t as student

    seeds = float(student.ppf(0.975, spread.freedom)) * spread.deviation / math.sqrt(len(values))
    mean, low, high = (
        math.fsum(getattr(value, end) for value in values) / len(values)
        for end in ("estimate", "low", "high")
    )
    return Interval(
        estimate=mean, low=mean - math.hypot(mean - low, seeds),
        high=mean + math.hypot(high - mean, seeds),
    )  # fmt: skip


def forgetting_of(
    entrants: Sequence[Entrant], axes: Mapping[Role, Axis]
) -> tuple[Forgetting, ...]:
    """Forgetting of each diagnosed run's final checkpoint, on the report items."""
    sign = 1.0 if not axes or axes["general"].direction == "maximize" else -1.0
    return tuple(
        Forgetting(
            name=e.label,
            point=e.final,
            forgetting=sign
            * (e.report["base"].general.estimate - e.report["final"].general.estimate),
            metrics=e.geometry,
        )
        for e in entrants
        if e.state == "measured" and e.geometry and e.final is not None
    )
