"""Numbers and comparisons as the pages write them."""

from __future__ import annotations

import pytest

from backtrack.records import Axis, Interval
from backtrack.report import wording


def test_negative_numbers_have_a_typographic_minus_sign():
    value = Interval(estimate=-3.14159, low=-5, high=0.2)
    assert wording.number(value.estimate, "points") == "\N{MINUS SIGN}3.1"
    text = wording.interval(value, "points", is_signed=True)
    assert text == "\N{MINUS SIGN}3.1 [\N{MINUS SIGN}5.0, +0.2]"


def test_a_fraction_is_a_percentage_with_one_decimal():
    assert wording.with_unit(0.8206, "fraction") == "82.1%"


@pytest.mark.parametrize(
    ("low", "high", "direction", "expected"),
    [
        (0.2, 1.0, "maximize", "better"),
        (0.2, 1.0, "minimize", "worse"),
        (-1.0, -0.2, "minimize", "better"),
        (-1.0, -0.2, "maximize", "worse"),
        (-0.2, 1.0, "maximize", "unclear"),
        (0.0, 0.0, "minimize", "unclear"),
    ],
)
def test_a_difference_is_clear_only_if_its_interval_excludes_zero(low, high, direction, expected):
    value = Interval(estimate=(low + high) / 2, low=low, high=high)
    assert wording.comparison(value, Axis(unit="%", direction=direction)) == expected
