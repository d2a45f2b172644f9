"""From report items to the records of a selection: rows, paired differences, baselines. Pure.

The yardsticks are those of the selection items; the bootstrap holds them fixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from backtrack.point import Point
from backtrack.records import ROLES
from backtrack.records.selection import BaselineRow, Difference, ReportRow
from backtrack.selection.stats.bootstrap import LEVEL, interval, shared_level

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from backtrack.records import Interval
    from backtrack.records.selection import Baseline
    from backtrack.selection.stats.scores import WeightedScores

    Floats = NDArray[np.float64]

Compared = Literal["base", "chosen", "final"]


def report_rows(
    weighted: WeightedScores, points: Mapping[Compared, Point]
) -> dict[Compared, ReportRow]:
    """Scores on the report items, with intervals."""
    columns = {key: weighted.table.column(point) for key, point in points.items()}
    return {
        key: ReportRow(
            point=points[key],
            scores={name: float(means[i]) for name, means in weighted.table.means.items()},
            target=interval(weighted.role("target")[i], weighted.role_samples("target")[:, i]),
            general=interval(weighted.role("general")[i], weighted.role_samples("general")[:, i]),
            utility=interval(weighted.utilities[i], weighted.utility_samples[:, i]),
            intervals={
                name: interval(float(weighted.table.means[name][i]), samples[:, i])
                for name, samples in weighted.samples.items()
            },
        )
        for key, i in columns.items()
    }


def differences(
    weighted: WeightedScores, chosen: Point, final: Point
) -> tuple[Difference, Difference]:
    """Chosen minus base and chosen minus final, the level of what is clear shared by both."""
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
    """Chosen minus other, item by item.

    Args:
        weighted: Of the report items.
        chosen: The chosen point.
        other: The other one.
        to: What that is.
        num_compared: Comparisons that share the level (Bonferroni).
    """
    i, j = weighted.table.column(chosen), weighted.table.column(other)
    utility = paired(weighted.utilities, weighted.utility_samples, i, j)
    means, samples = weighted.table.means, weighted.samples
    level = shared_level(num_compared, _num_free(weighted))
    strict = paired(weighted.utilities, weighted.utility_samples, i, j, level)
    return Difference(
        to=to,
        target=paired(weighted.role("target"), weighted.role_samples("target"), i, j),
        general=paired(weighted.role("general"), weighted.role_samples("general"), i, j),
        utility=utility,
        scores={name: paired(means[name], samples[name], i, j) for name in means},
        items_to_settle=weighted.items_to_settle(i, j, utility.estimate),
        is_clear=strict.low > 0 or strict.high < 0,
    )


def _num_free(weighted: WeightedScores) -> int:
    """Items of the role that has fewer, less one for each of its objectives."""
    setting = weighted.table.setting
    free = dict.fromkeys(ROLES, 0)
    for objective in setting.objectives:
        free[objective.role] += len(setting.item_ids[objective.name]) - 1
    return min(free.values())


def paired(
    values: Floats, samples: Floats, column: int, other: int, level: float = LEVEL
) -> Interval:
    """The difference of two columns, drawn together."""
    gaps = samples[:, column] - samples[:, other]
    return interval(values[column] - values[other], gaps, level)


def baseline_row(
    weighted: WeightedScores, baseline: Baseline, column: int, chosen: int
) -> BaselineRow:
    """A baseline's scores, and the chosen point's utility less its own.

    Args:
        weighted: Of the report items; its scores hold the baseline's.
        baseline: Which.
        column: Where its scores stand.
        chosen: Where the chosen point's do.
    """

    def own(values: Floats, samples: Floats) -> Interval:
        return interval(values[column], samples[:, column])

    return BaselineRow(
        baseline=baseline,
        scores={name: float(means[column]) for name, means in weighted.table.means.items()},
        target=own(weighted.role("target"), weighted.role_samples("target")),
        general=own(weighted.role("general"), weighted.role_samples("general")),
        utility=own(weighted.utilities, weighted.utility_samples),
        difference=paired(weighted.utilities, weighted.utility_samples, chosen, column),
    )
