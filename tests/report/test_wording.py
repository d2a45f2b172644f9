"""Numbers as they are read."""

from __future__ import annotations

import math

import pytest

from backtrack.records import Axis, Interval
from backtrack.report import wording


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (82.06, "%", "82.1"),
        (-0.04, "points", "0.0"),
        (-3.14159, "points", "\N{MINUS SIGN}3.1"),
        (2.0512, "nats a token", "2.051"),
        (0.00123456, "nats a token", "0.001235"),
        (12345.6, "tokens", "12,346"),
        (0.0, "nats a token", "0.0"),
        (math.nan, "%", "\N{EN DASH}"),
        (math.inf, "nats a token", "\N{EN DASH}"),
    ],
)
def test_a_number_has_the_digits_of_its_unit(value, unit, text):
    assert wording.number(value, unit) == text


def test_an_interval_stands_in_brackets_behind_its_estimate():
    value = Interval(estimate=82.06, low=78.9, high=85)
    assert wording.interval(value, "%") == "82.1 [78.9, 85.0]"


def test_the_ends_of_an_interval_have_as_many_decimals_as_its_estimate():
    value = Interval(estimate=2.0512, low=0.98, high=3.1)
    assert wording.interval(value, "nats a token") == "2.051 [0.980, 3.100]"


def test_a_fraction_is_a_percentage_with_one_decimal():
    assert wording.with_unit(0.8206, "fraction") == "82.1%"


@pytest.mark.parametrize(
    ("low", "high", "direction", "said"),
    [
        (0.2, 1.0, "maximize", "better"),
        (0.2, 1.0, "minimize", "worse"),
        (-1.0, -0.2, "minimize", "better"),
        (-1.0, -0.2, "maximize", "worse"),
        (-0.2, 1.0, "maximize", "unclear"),
        (0.0, 0.0, "minimize", "unclear"),
    ],
)
def test_a_difference_leans_only_where_its_interval_leaves_zero_out(low, high, direction, said):
    value = Interval(estimate=(low + high) / 2, low=low, high=high)
    assert wording.leaning(value, Axis(unit="%", direction=direction)) == said


def test_a_small_share_is_not_called_nothing():
    assert wording.share(0.0001) == "<0.1%"
    assert wording.share(0.0) == "0.0%"
    assert wording.share(0.25) == "25.0%"
