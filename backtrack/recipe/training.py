"""Recipe sections for training, in addition to TRL's own settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backtrack.recipe.expressions import Expression
from backtrack.recipe.sections import Section

LearningRates = dict[Expression, Annotated[float, Field(ge=0)]]
"""Learning rates by a regular expression for parameter names."""


class EarlyStopSection(Section):
    """Stop when a metric of TRL's evaluation no longer improves."""

    metric: str = "eval_loss"
    """Name in the Trainer's log, such as `eval_loss` or `eval_reward`; lower losses are better."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Evaluations without improvement before training stops."""
    min_improvement: Annotated[float, Field(ge=0)] = 0.0
    """Smallest change that counts as an improvement."""


class WatchSection(Section):
    """Probe evaluations: measure objectives during training on a few items, and stop in time."""

    every_steps: Annotated[int, Field(ge=1)]
    """Optimizer steps from one probe evaluation to the next."""
    items: Annotated[int, Field(ge=2)] = 50
    """Selection items per objective; report items stay unseen."""
    max_general_drop: Annotated[float, Field(ge=0)] | None = None
    """Stop when general ability is surely more than this many points below the base."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence of the stop, over all probe evaluations of the training together."""


class _Reward(Section):
    weight: float = 1.0
    """Weight in the sum of rewards."""
    name: str = ""
    """Name in the log; default: the kind, or the function's name."""


Unreadable = Literal["refuse", "drop"]


class NumericReward(_Reward):
    """1 if the completion's number equals the answer's, compared as exact fractions."""

    kind: Literal["numeric"]
    answer: str = "{answer}"
    """Format over the item's fields, giving text whose last number is the answer."""
    unreadable: Unreadable = "refuse"
    """What to do with items whose answer cannot be read."""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """Allowed difference, as a share of the answer."""


class MathVerifyReward(_Reward):
    """1 if math-verify finds the completion's expression equal to the answer's."""

    kind: Literal["math_verify"]
    answer: str = "{answer}"
    """Format over the item's fields, giving LaTeX or plain text that contains the answer."""
    unreadable: Unreadable = "refuse"
    """What to do with items whose answer cannot be read."""


class ChoiceReward(_Reward):
    """1 if the completion names the right letter."""

    kind: Literal["choice"]
    answer: str = "{answer}"
    """Format over the item's fields, giving the letter."""
    unreadable: Unreadable = "refuse"
    """What to do with items whose answer cannot be read."""
    letters: Annotated[str, Field(pattern=r"^[A-Z]{2,26}$")] = "ABCDE"
    """The possible letters."""


class FormatReward(_Reward):
    """1 if the whole completion matches a pattern."""

    kind: Literal["format"]
    pattern: Expression
    """Regular expression for the whole completion without outer white space; a dot matches any
    character."""


class PythonReward(_Reward):
    """A user function with TRL's signature: `function(prompts, completions, **fields)`."""

    kind: Literal["python"]
    function: str
    """`module:function`; it returns one number per completion, or None to abstain. Every field of
    the data is passed by name, as a list."""


Reward = Annotated[
    NumericReward | MathVerifyReward | ChoiceReward | FormatReward | PythonReward,
    Field(discriminator="kind"),
]


def reward_name(reward: Reward) -> str:
    """The default name of a reward."""
    return reward.function.rpartition(":")[2] if isinstance(reward, PythonReward) else reward.kind
