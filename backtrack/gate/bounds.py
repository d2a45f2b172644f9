"""Bounds of a gate, and the objectives that each is about. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backtrack.errors import UsageError
from backtrack.formatting import POINTS, shown_unit
from backtrack.gate.decision import Gains
from backtrack.records import ROLES
from backtrack.selection.stats.items import clusters_of
from backtrack.selection.stats.utility import (
    highest_points,
    highest_score,
    make_yardstick,
    role_shares,
    to_points,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from backtrack.gate.pairs import Pair
    from backtrack.records import ObjectiveInfo
    from backtrack.records.gate import GateBound

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BoundedMean:
    """The mean that a bound is about.

    Attributes:
        bound: The bound.
        shares: Share of each objective in the mean, by name.
        infos: The objectives, by name.
    """

    bound: GateBound
    shares: Mapping[str, float]
    infos: Mapping[str, ObjectiveInfo]

    @property
    def unit(self) -> str:
        """Unit of the mean: `%`, `points`, or the objective's own."""
        if self.bound.is_role:
            return POINTS
        return shown_unit(self.infos[self.bound.name].unit)[0]

    def shown(self, name: str, scores: Floats) -> Floats:
        """Scores of an objective's items in the unit of the mean."""
        if self.bound.is_role:
            return to_points(scores, make_yardstick(self.infos[name]))
        return shown_unit(self.infos[name].unit)[1] * scores

    def gains(self, name: str, pair: Pair, scores: tuple[Floats, Floats]) -> Gains:
        """What an objective's items add to the gain.

        Args:
            name: The objective.
            pair: Its items.
            scores: Of the candidate and the incumbent, of the same items, [items] each.
        """
        candidate, incumbent = (self.shown(name, each) for each in scores)
        info = self.infos[name]
        is_more = self.bound.is_role or info.direction == "maximize"
        values = candidate - incumbent if is_more else incumbent - candidate
        if self.bound.is_role:
            top = highest_points(info)
        else:
            top = (highest_score(info) or 0.0) * shown_unit(info.unit)[1] or None
        clusters = clusters_of(pair.item_ids[: len(values)], pair.clusters)
        return Gains(values, clusters, top, self.shares[name])


def bounded_means(
    bounds: Sequence[GateBound], infos: Mapping[str, ObjectiveInfo]
) -> tuple[BoundedMean, ...]:
    """The mean that each bound is about.

    Args:
        bounds: The bounds.
        infos: The objectives of all bounds, by name.

    Raises:
        UsageError: No objective has a bounded role, or an objective's scores have no scale by
            which a role's mean could weigh them.
    """
    return tuple(_bounded_mean(bound, infos) for bound in bounds)


def _bounded_mean(bound: GateBound, infos: Mapping[str, ObjectiveInfo]) -> BoundedMean:
    if not bound.is_role:
        return BoundedMean(bound, {bound.name: 1.0}, {bound.name: infos[bound.name]})
    (role,) = [role for role in ROLES if role == bound.name]
    shares = role_shares(list(infos.values()), role)
    if not shares:
        known = ", ".join(f"{info.name} ({info.role})" for info in infos.values()) or "none"
        raise UsageError(
            f"a bound is set on the {role} score, and no objective has that role. There are "
            f"{known}. A recipe given with --recipe says which objective has which role."
        )
    return BoundedMean(bound, shares, {name: infos[name] for name in shares})
