"""Numbers, intervals, sizes and durations as text."""

from __future__ import annotations

import math

import pytest

from backtrack import formatting
from backtrack.records import Interval


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (82.06, "%", "82.1"),
        (-0.04, "points", "0.0"),
        (-3.14159, "points", "-3.1"),
        (2.0512, "nats a token", "2.051"),
        (0.00123456, "nats a token", "0.001235"),
        (12345.6, "tokens", "12,346"),
        (0.0, "nats a token", "0.0"),
        (0.876, "correlation", "0.88"),
        (math.nan, "%", "\N{EN DASH}"),
        (math.inf, "nats a token", "\N{EN DASH}"),
    ],
)
def test_a_number_has_the_digits_of_its_unit(value, unit, text):
    assert formatting.number(value, unit) == text


def test_an_interval_follows_its_estimate_in_brackets():
    value = Interval(estimate=82.06, low=78.9, high=85)
    assert formatting.interval(value, "%") == "82.1 [78.9, 85.0]"


def test_the_ends_of_an_interval_have_as_many_decimals_as_its_estimate():
    value = Interval(estimate=2.0512, low=0.98, high=3.1)
    assert formatting.interval(value, "nats a token") == "2.051 [0.980, 3.100]"


def test_a_difference_has_a_sign_on_every_number():
    value = Interval(estimate=1.24, low=-0.31, high=0.0)
    assert formatting.interval(value, "points", is_signed=True) == "+1.2 [-0.3, +0.0]"
    text = formatting.interval(value, "points", is_signed=True, has_unit=True)
    assert text == "+1.2 points [-0.3, +0.0]"


def test_a_factor_turns_fractions_into_percent():
    value = Interval(estimate=0.8206, low=0.789, high=0.85)
    unit, factor = formatting.shown_unit("fraction")
    assert formatting.interval(value, unit, factor=factor) == "82.1 [78.9, 85.0]"
    assert formatting.shown_unit("nats a token") == ("nats a token", 1.0)


def test_a_small_share_is_not_shown_as_zero():
    assert formatting.share(0.0001) == "<0.1%"
    assert formatting.share(0.0) == "0.0%"
    assert formatting.share(0.25) == "25.0%"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (17_400_000, "17.4 MB"),
        (999_499_999, "999 MB"),
        (999_700_000, "1 GB"),
        (79_200_000_000, "79.2 GB"),
        (1_080_000_000_000, "1.08 TB"),
    ],
)
def test_a_size_has_three_digits_in_decimal_units(num_bytes, text):
    assert formatting.byte_size(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(40.4, "40 s"), (90, "2 min"), (5399, "90 min"), (12600, "3.5 h")]
)
def test_a_duration_is_in_seconds_minutes_or_hours(seconds, text):
    assert formatting.duration(seconds) == text
