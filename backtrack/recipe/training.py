"""Sections on how training goes, beside TRL's own."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field


def _expressions(rates: dict[str, float]) -> dict[str, float]:
    for pattern in rates:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return rates


LearningRates = Annotated[dict[str, Annotated[float, Field(ge=0)]], AfterValidator(_expressions)]
"""Learning rate by a regular expression for names of parameters."""
