"""Regular expressions in a recipe, refused where they are none."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator


def _expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


Expression = Annotated[str, AfterValidator(_expression)]
"""A regular expression."""
