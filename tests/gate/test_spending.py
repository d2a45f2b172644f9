"""The chance of error is shared among looks as the spending function says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri

from backtrack.gate.spending import spent, tails

FRACTIONS = (0.125, 0.25, 0.5, 1.0)


def test_all_of_the_level_is_spent_by_the_last_item_and_a_fifth_by_the_first_eighth() -> None:
    assert spent(1.0, 0.05) == pytest.approx(0.05)
    assert spent(0.125, 0.05) == pytest.approx(0.05 * 0.1946, rel=1e-3)


def test_one_look_has_the_whole_level() -> None:
    assert tails((1.0,), 0.05) == pytest.approx((0.05,))


def test_what_is_spent_at_a_look_does_not_depend_on_the_looks_to_come() -> None:
    assert tails(FRACTIONS[:2], 0.05) == pytest.approx(tails(FRACTIONS, 0.05)[:2])


@pytest.mark.parametrize("fractions", [FRACTIONS, (0.4, 1.0), (0.1, 0.11, 0.9)])
def test_scores_without_an_effect_cross_as_often_as_is_spent(fractions) -> None:
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((400_000, len(fractions))) * np.sqrt(np.diff([0, *fractions]))
    z = steps.cumsum(axis=1) / np.sqrt(fractions)
    has_crossed = np.logical_or.accumulate(z > -ndtri(tails(fractions, 0.05)), axis=1)
    expected = [spent(fraction, 0.05) for fraction in fractions]
    assert has_crossed.mean(axis=0) == pytest.approx(expected, abs=0.0015)
