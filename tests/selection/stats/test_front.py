from __future__ import annotations

import numpy as np

from backtrack.records import ROLES, Axis, Role
from backtrack.selection.stats.front import pareto_front

AXES: dict[Role, Axis] = {role: Axis(unit="%", direction="maximize") for role in ROLES}


def test_the_front_holds_what_nothing_dominates():
    target, general = np.array([1.0, 2, 3, 2, 1]), np.array([3.0, 2, 1, 1, 3])
    assert pareto_front(target, general, AXES).tolist() == [True, True, True, False, True]


def test_the_front_knows_which_way_is_better():
    axes: dict[Role, Axis] = {**AXES, "general": Axis(unit="nats a token", direction="minimize")}
    target, general = np.array([1.0, 2, 3]), np.array([1.0, 1, 2])
    assert pareto_front(target, general, axes).tolist() == [False, True, True]
