"""Records of the report items: rows, paired differences, baselines. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from backtrack.point import Point
from backtrack.records.selection import BaselineRow, Difference, ReportRow
from backtrack.selection.stats.bootstrap import LEVEL, interval, shared_level
from backtrack.selection.stats.utility import utility_shares

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from backtrack.records import Interval
    from backtrack.records.selection import Baseline
    from backtrack.selection.stats.scores import WeightedScores

    Floats = NDArray[np.float64]

Compared = Literal["base", "chosen", "final"]


def report_rows(
    weighted: WeightedScores, points: Mapping[Compared, Point]
) -> dict[Compared, ReportRow]:
    """Make the report row of each point."""
    return {key: _report_row(weighted, point) for key, point in points.items()}


def _report_row(weighted: WeightedScores, point: Point) -> ReportRow:
    scores = weighted.scores
    means, column = scores.table.means, scores.table.column(point)
    return ReportRow(
        point=point,
        scores={name: float(values[column]) for name, values in means.items()},
        target=_own(scores.role("target"), scores.role_samples("target"), column),
        general=_own(scores.role("general"), scores.role_samples("general"), column),
        utility=_own(weighted.utilities, weighted.utility_samples, column),
        intervals={
            name: _own(means[name], samples, column) for name, samples in scores.samples.items()
        },
    )


def differences(
    weighted: WeightedScores, chosen: Point, final: Point
) -> tuple[Difference, Difference]:
    """Compare the chosen point with base and final checkpoint; both share one level of claims."""
    ends: dict[Literal["base", "final"], Point] = {"base": Point.base(), "final": final}
    num_compared = sum(chosen != end.canonical for end in ends.values())
    to_base, to_final = (
        difference(weighted, chosen, end, to, num_compared) for to, end in ends.items()
    )
    return to_base, to_final


def difference(
    weighted: WeightedScores,
    chosen: Point,
    other: Point,
    to: Literal["base", "final"],
    num_compared: int = 1,
) -> Difference:
    """Compute chosen minus other, paired by item.

    Args:
        weighted: Scores of the report items.
        chosen: The chosen point.
        other: The point it is compared with.
        to: Which end `other` is.
        num_compared: Number of comparisons that share the level (Bonferroni).
    """
    scores = weighted.scores
    i, j = scores.table.column(chosen), scores.table.column(other)
    means, samples = scores.table.means, scores.samples
    level = shared_level(num_compared, _degrees_of_freedom(weighted, i, j))
    strict = paired(weighted.utilities, weighted.utility_samples, i, j, level)
    utility = paired(weighted.utilities, weighted.utility_samples, i, j)
    return Difference(
        to=to,
        target=paired(scores.role("target"), scores.role_samples("target"), i, j),
        general=paired(scores.role("general"), scores.role_samples("general"), i, j),
        utility=utility,
        scores={name: paired(means[name], samples[name], i, j) for name in means},
        items_to_settle=weighted.items_to_settle(i, j, utility.estimate),
        is_clear=strict.low > 0 or strict.high < 0,
    )


def _degrees_of_freedom(weighted: WeightedScores, column: int, other: int) -> float:
    """Compute the degrees of freedom of a utility difference (Welch and Satterthwaite).

    An objective of few items counts by what it adds to the variance: 15 items beside 200 are not
    215 if most of the variance is theirs.
    """
    scores = weighted.scores
    shares = utility_shares(scores.objectives, weighted.weight)
    variances, parts = 0.0, 0.0
    for name, samples in scores.point_samples.items():
        variance = float(np.var(shares[name] * (samples[:, column] - samples[:, other])))
        variances += variance
        parts += variance**2 / (len(scores.table.setting.item_ids[name]) - 1)
    return variances**2 / parts if parts else 1.0


def paired(
    values: Floats, samples: Floats, column: int, other: int, level: float = LEVEL
) -> Interval:
    """Compute the difference of two columns with its paired interval."""
    gaps = samples[:, column] - samples[:, other]
    return interval(values[column] - values[other], gaps, level)


def _own(values: Floats, samples: Floats, column: int) -> Interval:
    """Compute a column's value with its interval."""
    return interval(values[column], samples[:, column])


def baseline_row(
    weighted: WeightedScores, baseline: Baseline, column: int, chosen: int
) -> BaselineRow:
    """Make the row of a baseline, compared with the chosen point.

    Args:
        weighted: Scores of the report items, the baseline's among them.
        baseline: The baseline.
        column: Column of the baseline's scores.
        chosen: Column of the chosen point.
    """
    scores = weighted.scores
    return BaselineRow(
        baseline=baseline,
        scores={name: float(means[column]) for name, means in scores.table.means.items()},
        target=_own(scores.role("target"), scores.role_samples("target"), column),
        general=_own(scores.role("general"), scores.role_samples("general"), column),
        utility=_own(weighted.utilities, weighted.utility_samples, column),
        difference=paired(weighted.utilities, weighted.utility_samples, chosen, column),
    )
