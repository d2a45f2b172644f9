"""What a token may see, as a mask in the form that a model takes.

A packed row holds branches beside each other, so the model must take a mask of its own for every
pair of tokens and the position of every token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

_KINDS = {"full_attention", "sliding_attention"}
"""Kinds of layers whose mask can be made here."""


def related(keys: Tensor, nodes: Tensor) -> Tensor:
    """Whether each node is a key itself or one of its descendants, [..., nodes, keys].

    Args:
        keys: Nodes, ends and positions, [3, ..., keys].
        nodes: Those that see, [..., nodes].
    """
    seeing = nodes[..., :, None]
    return (keys[0][..., None, :] <= seeing) & (seeing < keys[1][..., None, :])


def attention_mask(model: Any, visible: Tensor, keys: Tensor, queries: Tensor) -> Any:
    """The mask that a model's forward pass takes.

    Args:
        model: The model.
        visible: Whether a query may see a key, [rows, queries, keys].
        keys: Positions, [rows, keys].
        queries: Positions, [rows, queries].

    Returns:
        A mask [rows, 1, queries, keys], or one for each kind of layer.
    """
    config = model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    near = visible
    if window is not None:
        near = visible & (queries[..., :, None] - keys[..., None, :] < window)
    masks = {"full_attention": visible, "sliding_attention": near}
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return _formed(near, model)
    if "sliding_attention" not in kinds:
        return _formed(visible, model)
    return {kind: _formed(masks[kind], model) for kind in set(kinds)}


def _formed(visible: Tensor, model: Any) -> Tensor:
    """What is added to attention scores, with a dimension for heads.

    Truth values would be turned into it in every layer.
    """
    added = torch.zeros(visible.shape, dtype=model.dtype, device=visible.device)
    return added.masked_fill(~visible, torch.finfo(model.dtype).min)[:, None]


def _implementation(model: Any) -> str:
    found: str = model.config.get_text_config(decoder=True)._attn_implementation  # noqa: SLF001
    return found


def obstacle(model: Any) -> str | None:
    """Why a model's configuration rules out reading trees; None if it does not."""
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ()) - _KINDS
    if model.config.is_encoder_decoder:
        return "it has an encoder"
    if getattr(model, "_is_stateful", False):
        return "its layers keep a state that cannot be divided by tokens"
    if kinds or getattr(config, "attention_chunk_size", None) is not None:
        return f"it has layers of the kind {', '.join(sorted(kinds)) or 'chunked_attention'}"
    if _implementation(model) not in ("sdpa", "eager"):
        return f"attention by {_implementation(model)} takes no mask for pairs of tokens"
    return None
