"""What TRL's trainers are given that they lack: rates by layer, a method's part of the loss.

Mixed into TRL's own classes, so that supervised and reinforcement training have the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from backtrack.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


class TrainerExtensions:
    """Put before a TRL trainer among a class's bases; abstract.

    Attributes:
        learning_rates: Peak rate by a regular expression for parameters' names; the first that is
            found in a name decides, and the rest have the common rate.
        penalty: Added to the loss while training, given the model.
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
        # The mean over the micro-batches of a step, as the loss itself is.
        added = self.penalty(trainer.model) / trainer.current_gradient_accumulation_steps
        return (result[0] + added, *result[1:]) if isinstance(result, tuple) else result + added


def set_learning_rates(optimizer: Any, model: Any, rates: Mapping[str, float]) -> None:
    """Divide an optimizer's groups, before its first step, so that each has one rate.

    Args:
        optimizer: Over parameters of `model`.
        model: Gives the parameters' names.
        rates: By regular expression, the first found in a name deciding.

    Raises:
        UsageError: An expression is found in no name of a trained parameter.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: set[str] = set()
    groups = []
    for group in optimizer.param_groups:
        parts: dict[str | None, list[Any]] = {}
        for parameter in group["params"]:
            pattern = _first_found(rates, names[id(parameter)])
            parts.setdefault(pattern, []).append(parameter)
        found |= {pattern for pattern in parts if pattern is not None}
        groups += [
            {**group, "params": params, "lr": group["lr"] if pattern is None else rates[pattern]}
            for pattern, params in parts.items()
        ]
    unused = [pattern for pattern in rates if pattern not in found]
    if unused:
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        raise UsageError(
            f"learning_rates: {unused[0]!r} is found in no trained parameter's name that an "
            f"earlier key has not taken. Names look like {trained[0]!r}."
        )
    optimizer.param_groups = groups


def _first_found(rates: Mapping[str, float], name: str) -> str | None:
    return next((pattern for pattern in rates if re.search(pattern, name)), None)
