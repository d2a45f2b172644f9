"""Embeddings and output heads: tied or untied, and vocabularies resized in training."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from backtrack.path.adapters.handles import plain_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def vocabulary_size(model: Any) -> int:
    """Number of rows of a model's embedding."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows


def overwritten_names(model: PreTrainedModel, tensors: Iterable[str]) -> tuple[str, ...]:
    """Names of a plain model's parameters that an adapter's tensors overwrite, sorted."""
    own = {name for name, _ in model.named_parameters()}
    return tuple(sorted(own & {plain_name(name) for name in tensors}))


def trained_rows(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> int:
    """Number of rows of the embedding and head after training; the model's if not saved."""
    vocabulary = vocabulary_size(model)
    names = [n for n, p in _embeddings(model).items() if n in tensors and p.shape[0] == vocabulary]
    return max((tensors[name].shape[0] for name in names), default=vocabulary)


@torch.no_grad()
def fit_vocabulary(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Resize a base to a trained embedding or head that has more rows, or fewer.

    New rows take the trained values: the base has none for them. Rows that training removed, such
    as padding beyond the tokenizer's tokens, are removed at every point.
    """
    vocabulary, rows = vocabulary_size(model), trained_rows(model, tensors)
    if rows == vocabulary:
        return
    logger.info("the vocabulary has %d rows in the base, %d in the checkpoint", vocabulary, rows)
    model.resize_token_embeddings(rows, mean_resizing=False)
    for name, parameter in _embeddings(model).items():
        if name in tensors:
            parameter[vocabulary:].copy_(tensors[name][vocabulary:])


def embedding_names(model: PreTrainedModel) -> set[str]:
    """Names of the weights of the embedding and the head; two also if they are tied."""
    return set(_embeddings(model))


def _embeddings(model: PreTrainedModel) -> dict[str, Tensor]:
    """Weights of the embedding and the head, under all of their names."""
    loaded: Any = model
    modules = (loaded.get_input_embeddings(), loaded.get_output_embeddings())
    weights = {id(module.weight) for module in modules if module is not None}
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in parameters if id(parameter) in weights}


def untie(model: PreTrainedModel, trained: Mapping[str, Tensor]) -> None:
    """Untie the head from the embedding if training moved only one of them, or them apart.

    Args:
        model: The base.
        trained: Trained weights, by name; of the embedding and the head, those that moved.
    """
    moved = [trained[name] for name in embedding_names(model) & trained.keys()]
    if len(moved) == 1 or (len(moved) > 1 and not torch.equal(moved[0], moved[1])):
        untie_head(model)


def is_tied(model: PreTrainedModel) -> bool:
    """Whether a model's head is its embedding."""
    loaded: Any = model
    head = loaded.get_output_embeddings()
    return head is not None and head.weight is loaded.get_input_embeddings().weight


def untie_head(model: PreTrainedModel) -> None:
    """Give a head that is tied to the embedding a weight of its own, of the same value."""
    if not is_tied(model):
        return
    loaded: Any = model
    head = loaded.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    model.config.get_text_config(decoder=True).tie_word_embeddings = False


@contextmanager
def untied(model: PreTrainedModel) -> Iterator[None]:
    """Untie a tied head inside the context, and tie it again afterwards.

    Needed for vLLM, which updates a tied embedding in place and keeps the old head.
    """
    if not is_tied(model):
        yield
        return
    loaded: Any = model
    head = loaded.get_output_embeddings()
    configs = [model.config, model.config.get_text_config(decoder=True)]
    tied = head.weight
    head.weight = torch.nn.Parameter(tied.detach().clone(), requires_grad=False)
    for config in configs:
        config.tie_word_embeddings = False
    try:
        yield
    finally:
        head.weight = tied
        for config in configs:
            config.tie_word_embeddings = True
