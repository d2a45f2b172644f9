"""Embedding and head: tied or not, and vocabularies that grew in training."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from backtrack.path.adapters.handles import plain_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel


def num_tokens(model: Any) -> int:
    """Rows of a model's embedding."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows


def overwritten(model: PreTrainedModel, tensors: Iterable[str]) -> tuple[str, ...]:
    """Parameters of a plain model that an adapter's tensors take the place of, by name."""
    own = {name for name, _ in model.named_parameters()}
    return tuple(sorted(own & {plain_name(name) for name in tensors}))


@torch.no_grad()
def fit_vocabulary(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Give a base the rows that a trained embedding or head has beyond its own.

    The new rows take the trained values: the base has none for them.
    """
    vocabulary = num_tokens(model)
    names = [n for n, p in _embeddings(model).items() if n in tensors and p.shape[0] == vocabulary]
    rows = max((tensors[name].shape[0] for name in names), default=vocabulary)
    if rows <= vocabulary:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    for name, parameter in _embeddings(model).items():
        if name in tensors:
            parameter[vocabulary:].copy_(tensors[name][vocabulary:])


def _embeddings(model: PreTrainedModel) -> dict[str, Tensor]:
    """Weights of the embedding and the head, by every name they have."""
    loaded: Any = model
    ends = (loaded.get_input_embeddings(), loaded.get_output_embeddings())
    weights = {id(end.weight) for end in ends if end is not None}
    every = model.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in every if id(parameter) in weights}


def untie(model: PreTrainedModel, moved: Iterable[str]) -> None:
    """Part a head from the embedding it is tied to, where only one of the two moves."""
    loaded: Any = model
    names = set(_embeddings(model))
    is_tied = not names <= dict(model.named_parameters()).keys()
    if is_tied and len(names & set(moved)) == 1:
        head = loaded.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
        model.config.get_text_config(decoder=True).tie_word_embeddings = False


@contextmanager
def untied(model: PreTrainedModel) -> Iterator[None]:
    """Give a head that is tied to the embedding a copy of its own inside; afterwards it is tied.

    vLLM replaces a tied embedding in place and leaves what it made of the head behind.
    """
    loaded: Any = model
    head, embedding = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        yield
        return
    configs = [model.config, model.config.get_text_config(decoder=True)]
    kept = head.weight
    head.weight = torch.nn.Parameter(kept.detach().clone(), requires_grad=False)
    for config in configs:
        config.tie_word_embeddings = False
    try:
        yield
    finally:
        head.weight = kept
        for config in configs:
            config.tie_word_embeddings = True
