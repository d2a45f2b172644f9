from __future__ import annotations

import numpy as np

from backtrack.selection.stats.front import pareto_front


def test_the_front_holds_what_nothing_dominates():
    target, general = np.array([1.0, 2, 3, 2, 1]), np.array([3.0, 2, 1, 1, 3])
    assert pareto_front(target, general).tolist() == [True, True, True, False, True]
