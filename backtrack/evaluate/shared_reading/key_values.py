"""Keys and values of tokens that were read, as a transformers cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache, DynamicLayer
from typing_extensions import override

if TYPE_CHECKING:
    from torch import Tensor

SPARE_TOKENS = 64
"""Room that is made at least when a layer is full."""


class KeyValues(Cache):
    """The keys and values of one batch, of every token in it.

    What a token may see is up to the attention mask, so layers with a sliding window keep all.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_GrowingLayer)

    def select(self, index: Tensor) -> None:
        """Keep the tokens at `index`."""
        for layer in self.layers:
            assert isinstance(layer, _GrowingLayer)
            layer.select(index)


class _GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values that grow in place: writing a token does not copy those before it.

    The cache of `generate` copies them all at every step.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held: list[Tensor] = []
        self._room: list[Tensor] = []

    @override
    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append states, [rows, heads, tokens, width] each; returns all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._held = [key_states[:, :, :0], value_states[:, :, :0]]
        held = self._held[0].shape[-2]
        total = held + key_states.shape[-2]
        if not self._room or self._room[0].shape[-2] < total:
            room = total + max(SPARE_TOKENS, total // 4)
            self._room = [_with_room(states, room) for states in self._held]
        for states, whole in zip((key_states, value_states), self._room, strict=True):
            whole[:, :, held:total] = states
        self._set([whole[:, :, :total] for whole in self._room])
        return self._held[0], self._held[1]

    def select(self, index: Tensor) -> None:
        self._set([states[:, :, index] for states in self._held])
        self._room = []

    def _set(self, held: list[Tensor]) -> None:
        self._held = held
        self.keys, self.values = held


def _with_room(states: Tensor, num_tokens: int) -> Tensor:
    """States at the front of a tensor with room for more tokens."""
    rows, heads, held, width = states.shape
    made = states.new_empty(rows, heads, num_tokens, width)
    made[:, :, :held] = states
    return made
