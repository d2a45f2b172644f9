"""Give TRL the output head's weight with its trained tokens, if the embedding is tied.

TRL computes log-probabilities from the weight of the output head directly, not by calling it. If
single rows of a tied embedding are trained, that weight is still the base's, and TRL fails or
refuses, since the loss would be another model's. Here `get_output_embeddings` returns the weight
with the trained rows merged.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple

from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class _Head(NamedTuple):
    """The attributes of an output head that TRL reads.

    Attributes:
        weight: Shape (vocabulary, hidden).
        bias: Shape (vocabulary,), or None.
    """

    weight: Tensor
    bias: Tensor | None = None


def expose_trained_tokens(model: PreTrainedModel) -> None:
    """Make a model's `get_output_embeddings` return the head with its trained rows merged.

    Args:
        model: The transformers model, before PEFT wraps it.
    """
    original: Any = model.get_output_embeddings

    def with_trained_rows(self: PreTrainedModel) -> Any:  # noqa: ARG001  # bound as a method
        head = original()
        if isinstance(head, TrainableTokensWrapper):
            head = head.token_adapter
        if isinstance(head, TrainableTokensLayer):
            return _Head(head.get_merged_weights(head.active_adapters))
        return head

    model.get_output_embeddings = MethodType(with_trained_rows, model)  # type: ignore[method-assign]
