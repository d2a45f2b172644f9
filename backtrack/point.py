"""A point on the path: plain data, no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from backtrack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ALPHA = 4.0
NAMES = ("base", "chosen", "final")
"""Points of a run that have a name."""


class Point(BaseModel):
    """A position on a fine-tuning path: a checkpoint, a strength, and a per-layer profile.

    Attributes:
        step: Optimizer step of the checkpoint; 0 is the base.
        alpha: Strength on the path: 0 is the base, 1 the checkpoint; it may exceed 1.
        profile: Name of the per-layer multipliers on alpha; `uniform` is all ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: Annotated[int, Field(ge=0)]
    alpha: Annotated[float, Field(ge=0, le=MAX_ALPHA, allow_inf_nan=False)] = 1.0
    profile: str = "uniform"

    @classmethod
    def base(cls) -> Self:
        """The base: step 0, alpha 0."""
        return cls(step=0, alpha=0.0)

    @property
    def is_base(self) -> bool:
        return self.step == 0 or self.alpha == 0

    @property
    def canonical(self) -> Point:
        """This point in canonical form: every point with alpha 0 becomes the base."""
        return Point.base() if self.is_base else self

    def __str__(self) -> str:
        if self.is_base:
            return "base"
        end = "" if self.profile == "uniform" else f" {self.profile}"
        return f"step {self.step} alpha {self.alpha:g}{end}"


def parse_point(text: str) -> Point:
    """Parse a point written as `STEP:ALPHA` or `STEP:ALPHA:PROFILE`.

    Raises:
        UsageError: It is not written so, or its alpha is out of range.
    """
    step, _, rest = text.partition(":")
    alpha, _, profile = rest.partition(":")
    try:
        return Point(step=int(step), alpha=float(alpha or "1"), profile=profile or "uniform")
    except ValueError as error:  # pydantic's is one too
        raise UsageError(
            f"{text!r} is not a point. Write STEP:ALPHA, such as 400:0.35, or STEP:ALPHA:PROFILE."
        ) from error


def is_point(text: str) -> bool:
    """Whether a text names a point: one of `NAMES`, STEP:ALPHA, or ALPHA."""
    return text in NAMES or text.replace(".", "").replace(":", "").isdigit()


def find_point(text: str, named: Mapping[str, Point]) -> Point:
    """The point that a text names: base, chosen, final, STEP:ALPHA, or ALPHA of the last step.

    Args:
        text: The text.
        named: Points of `NAMES`, the final checkpoint among them.

    Raises:
        UsageError: It names no point.
    """
    if text in named:
        return named[text]
    if ":" in text:
        return parse_point(text)
    try:
        return parse_point(f"{named['final'].step}:{text}")
    except UsageError as error:
        names = ", ".join(named)
        raise UsageError(
            f"{text!r} is not a point. Write {names}, STEP:ALPHA such as 400:0.35, or an alpha of "
            "the last step."
        ) from error
