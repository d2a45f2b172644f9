"""Extend TRL's trainers: learning rates by parameter name, and a penalty added to the loss."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from backtrack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


class TrainerExtensions:
    """A mixin for TRL's trainers, to be listed before them among a class's bases.

    Attributes:
        learning_rates: Peak learning rate by a regular expression for parameter names. The first
            expression found in a name applies; other parameters have the Trainer's rate.
        penalty: Function of the model whose value is added to the training loss; None for none.
    """

    learning_rates: Mapping[str, float] = {}
    penalty: Callable[[Any], Tensor] | None = None

    def create_optimizer(self, model: Any = None) -> Any:
        trainer: Any = self
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        if self.learning_rates:
            set_learning_rates(
                optimizer, trainer.model if model is None else model, self.learning_rates
            )
        return optimizer

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **fields: Any) -> Any:
        trainer: Any = self
        result = super().compute_loss(model, inputs, *args, **fields)  # type: ignore[misc]
        if self.penalty is None or not trainer.model.training:
            return result
        # Averaged over a step's micro-batches, as the loss itself is.
        added = self.penalty(trainer.model) / trainer.current_gradient_accumulation_steps
        return (result[0] + added, *result[1:]) if isinstance(result, tuple) else result + added


def set_learning_rates(optimizer: Any, model: Any, rates: Mapping[str, float]) -> None:
    """Split an optimizer's parameter groups by learning rate, before its first step.

    Args:
        optimizer: An optimizer of parameters of `model`.
        model: The model, for the parameters' names.
        rates: Rate by regular expression; the first expression found in a name applies.

    Raises:
        UsageError: An expression matches no trained parameter.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    used: set[str] = set()
    groups = []
    for group in optimizer.param_groups:
        by_pattern: dict[str | None, list[Any]] = {}
        for parameter in group["params"]:
            pattern = _first_match(rates, names[id(parameter)])
            by_pattern.setdefault(pattern, []).append(parameter)
        used |= {pattern for pattern in by_pattern if pattern is not None}
        groups += [
            {**group, "params": params, "lr": group["lr"] if pattern is None else rates[pattern]}
            for pattern, params in by_pattern.items()
        ]
    unused = [pattern for pattern in rates if pattern not in used]
    if unused:
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        raise UsageError(
            f"learning_rates: {unused[0]!r} is found in no trained parameter's name that does not "
            f"match an earlier key. A name is {trained[0]!r}, for example."
        )
    optimizer.param_groups = groups


def _first_match(rates: Mapping[str, float], name: str) -> str | None:
    return next((pattern for pattern in rates if re.search(pattern, name)), None)
