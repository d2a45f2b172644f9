"""Let TRL see trained tokens in a tied output head.

TRL computes log-probabilities from the weight of the output head directly, not by calling it.
Where single rows of a tied embedding are trained, that weight is the base's: the loss would be
another model's. TRL fails there, or refuses. It takes the weight from here, with the rows in it.
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
    """What TRL reads of an output head.

    Attributes:
        weight: Of shape (vocabulary, width).
        bias: Of shape (vocabulary,), if any.
    """

    weight: Tensor
    bias: Tensor | None = None


def expose_trained_tokens(model: PreTrainedModel) -> None:
    """Make a plain model's `get_output_embeddings` answer with the rows that are trained.

    Args:
        model: Before PEFT wraps it.
    """
    untouched: Any = model.get_output_embeddings

    def with_trained_rows(self: PreTrainedModel) -> Any:  # noqa: ARG001  # bound as a method
        head = untouched()
        if isinstance(head, TrainableTokensWrapper):
            head = head.token_adapter
        if isinstance(head, TrainableTokensLayer):
            return _Head(head.get_merged_weights(head.active_adapters))
        return head

    model.get_output_embeddings = MethodType(with_trained_rows, model)  # type: ignore[method-assign]
