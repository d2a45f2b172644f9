"""Records of the report items: rows, paired differences, baselines. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from backtrack.point import Point
from backtrack.records import ROLES
from backtrack.records.selection import BaselineRow, Difference, ReportRow
from backtrack.selection.stats.intervals import Part, difference_interval, reserve
from backtrack.selection.stats.utility import (
    highest_points,
    highest_score,
    role_shares,
    to_points,
    utility_shares,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from backtrack.records import Interval, ObjectiveInfo, Role
    from backtrack.records.selection import Baseline
    from backtrack.selection.stats.scores import RoleScores, WeightedScores

    Floats = NDArray[np.float64]

Compared = Literal["base", "chosen", "final"]


def report_rows(
    weighted: WeightedScores, points: Mapping[Compared, Point]
) -> dict[Compared, ReportRow]:
    """Make the report row of each point."""
    return {key: _report_row(weighted, point) for key, point in points.items()}


def _report_row(weighted: WeightedScores, point: Point) -> ReportRow:
    scores = weighted.scores
    column = scores.table.column(point)
    return ReportRow(
        point=point,
        scores={name: float(values[column]) for name, values in scores.table.means.items()},
        target=role_interval(scores, "target", column),
        general=role_interval(scores, "general", column),
        utility=_own_utility(weighted, column),
        intervals=scores.own_intervals(column),
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
    objectives, pair = scores.objectives, (scores.table.column(chosen), scores.table.column(other))
    parts = gap_parts(scores, pair, utility_shares(objectives, weighted.weight))
    utility, strict = (difference_interval(parts, num) for num in (1, num_compared))
    target, general = (
        difference_interval(gap_parts(scores, pair, role_shares(objectives, r))) for r in ROLES
    )
    return Difference(
        to=to,
        target=target,
        general=general,
        utility=utility,
        scores={o.name: _own_difference(scores, o, pair) for o in objectives},
        items_to_settle=weighted.items_to_settle(*pair, utility.estimate),
        is_clear=strict.low > 0 or strict.high < 0,
    )


def gap_parts(
    scores: RoleScores, pair: tuple[int, int], shares: Mapping[str, float]
) -> list[Part]:
    """List what each objective adds to the difference of two points in a weighted mean of points.

    Args:
        scores: The scores.
        pair: Columns of the two points; the second is subtracted.
        shares: Share of each objective in the mean, by name.
    """
    table, parts = scores.table, list[Part]()
    weighed = [o for o in scores.objectives if shares.get(o.name)]
    for o in weighed:
        first, second = to_points(table.scores[o.name][list(pair)], table.yardsticks[o.name])
        least = reserve(first - second, highest_points(o)) if pair[0] != pair[1] else 0.0
        estimate, samples = _gap(scores.point_means, scores.point_samples, o.name, pair)
        parts.append(
            Part(
                estimate=shares[o.name] * estimate,
                samples=shares[o.name] * samples,
                reserve=shares[o.name] ** 2 * least / len(weighed),
                num_free=_num_free(scores, o.name),
                largest=shares[o.name] * (highest_points(o) or math.inf),
            )
        )
    return parts


def _own_difference(
    scores: RoleScores, objective: ObjectiveInfo, pair: tuple[int, int]
) -> Interval:
    """Make the interval of a difference in one objective's score, in its unit."""
    name, table = objective.name, scores.table
    first, second = table.scores[name][list(pair)]
    least = reserve(first - second, highest_score(objective)) if pair[0] != pair[1] else 0.0
    gap = _gap(table.means, scores.samples, name, pair)
    largest = highest_score(objective) or math.inf
    return difference_interval([Part(*gap, least, _num_free(scores, name), largest)])


def _gap(
    means: Mapping[str, Floats], samples: Mapping[str, Floats], name: str, pair: tuple[int, int]
) -> tuple[float, Floats]:
    i, j = pair
    return float(means[name][i] - means[name][j]), samples[name][:, i] - samples[name][:, j]


def _num_free(scores: RoleScores, name: str) -> int:
    return max(len(set(scores.table.setting.item_clusters[name])) - 1, 1)


def role_interval(scores: RoleScores, role: Role, column: int) -> Interval:
    """Make the interval of a point's role score, in points."""
    shares = role_shares(scores.objectives, role)
    return scores.interval(float(scores.role(role)[column]), column, shares)


def _own_utility(weighted: WeightedScores, column: int) -> Interval:
    scores = weighted.scores
    shares = utility_shares(scores.objectives, weighted.weight)
    return scores.interval(float(weighted.utilities[column]), column, shares)


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
    shares = utility_shares(scores.objectives, weighted.weight)
    return BaselineRow(
        baseline=baseline,
        scores={name: float(means[column]) for name, means in scores.table.means.items()},
        target=role_interval(scores, "target", column),
        general=role_interval(scores, "general", column),
        utility=_own_utility(weighted, column),
        difference=difference_interval(gap_parts(scores, (chosen, column), shares)),
    )
