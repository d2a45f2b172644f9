"""Sections on how training goes, beside TRL's own."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from backtrack.recipe.sections import Section


def _expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


def _expressions(rates: dict[str, float]) -> dict[str, float]:
    for pattern in rates:
        _expression(pattern)
    return rates


LearningRates = Annotated[dict[str, Annotated[float, Field(ge=0)]], AfterValidator(_expressions)]
"""Learning rate by a regular expression for names of parameters."""


class EarlyStopSection(Section):
    """Stop when a figure of TRL's own evaluation no longer gets better."""

    metric: str = "eval_loss"
    """As the Trainer logs it, such as `eval_loss` or `eval_reward`; losses are to fall."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Evaluations without improvement before training stops."""
    min_improvement: Annotated[float, Field(ge=0)] = 0.0
    """What counts as one."""


class WatchSection(Section):
    """Measure the objectives during training on a few selection items, and stop in time."""

    every_steps: Annotated[int, Field(ge=1)]
    """Optimizer steps from one look to the next."""
    items: Annotated[int, Field(ge=2)] = 50
    """Selection items an objective; the report items stay unseen."""
    max_general_drop: Annotated[float, Field(ge=0)] | None = None
    """Stop when general ability has surely fallen by more, in points, below the base."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """How sure, over all looks of the training together."""


class _Reward(Section):
    weight: float = 1.0
    """Factor in the sum of rewards."""
    name: str = ""
    """As it is logged; the default is the kind, or the function's name."""


class NumericReward(_Reward):
    """1 where the completion's number is the answer's, as exact fractions."""

    kind: Literal["numeric"]
    answer: str = "{answer}"
    """Format over the item's fields: text whose last number is the answer."""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """How far off it may be, as a share of the answer."""


class MathVerifyReward(_Reward):
    """1 where math-verify finds the completion's expression equal to the answer's."""

    kind: Literal["math_verify"]
    answer: str = "{answer}"
    """Format over the item's fields: LaTeX or plain text that holds the answer."""


class ChoiceReward(_Reward):
    """1 where the completion names the right letter."""

    kind: Literal["choice"]
    answer: str = "{answer}"
    """Format over the item's fields: the letter."""
    letters: Annotated[str, Field(pattern=r"^[A-Z]{2,26}$")] = "ABCDE"
    """The letters there are."""


class FormatReward(_Reward):
    """1 where the whole completion has a form."""

    kind: Literal["format"]
    pattern: Annotated[str, AfterValidator(_expression)]
    """Regular expression for all of the completion, without white space at its ends; a dot is any
    character."""


class PythonReward(_Reward):
    """A function of yours with TRL's signature: `function(prompts, completions, **fields)`."""

    kind: Literal["python"]
    function: str
    """`module:function`; returns one number a completion, or None for no opinion. Every field of
    the data is passed by its name, as a list."""


Reward = Annotated[
    NumericReward | MathVerifyReward | ChoiceReward | FormatReward | PythonReward,
    Field(discriminator="kind"),
]


def reward_name(reward: Reward) -> str:
    """What a reward is called that has not been given a name."""
    return reward.function.rpartition(":")[2] if isinstance(reward, PythonReward) else reward.kind
