"""How far next-token distributions are from those of the base, over the whole vocabulary.

Promised: no truncation; the base is read by the same passes as the model it is compared with, so
that a model with the base's weights diverges by exactly 0. The base's logits are kept in host
memory, in the model's own type, up to a share of what is free; the rest is read again each time.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from backtrack.evaluate.shared_reading.prefix_tree import PrefixTree
from backtrack.evaluate.shared_reading.reader import read_all
from backtrack.free_memory import free_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from backtrack.evaluate.shared_reading.passes import Budget

    Rows = list[tuple[range, Tensor]]

SHARE = 0.25
"""Of the free host memory that the base's logits may take."""
CHUNK_BYTES = 1 << 29
"""Of logits that are held at a time where they are not kept."""
MAX_POSITIONS = 64
"""Positions in fp64 at a time."""


class _Reading(NamedTuple):
    """Sequences that are read together.

    Attributes:
        indices: Which sequences.
        tree: The tree of them.
        budget: Bounds of a pass.
        is_shared: The model reads trees.
    """

    indices: list[int]
    tree: PrefixTree
    budget: Budget
    is_shared: bool

    @property
    def key(self) -> object:
        return tuple(self.tree.tokens), tuple(self.tree.parents), self.budget, self.is_shared

    def rows(self, model: Any) -> Iterator[tuple[range, Tensor]]:
        """Nodes and the logits after each, [nodes, vocabulary], in the order of the passes."""

        def whole(rows: Sequence[range]) -> list[int]:
            return list(range(max(map(len, rows))))

        shared = self.is_shared
        for row, _, logits in read_all(model, self.tree, self.budget, whole, is_shared=shared):
            yield row, logits[: len(row)]


class BaseLogits:
    """The base's logits for what is read, kept as far as they fit."""

    def __init__(self, at_base: Callable[[], AbstractContextManager[Any]]) -> None:
        """Read nothing yet.

        Args:
            at_base: Gives the run's model at the base; it is where it was afterwards.
        """
        self._at_base = at_base
        self._kept: dict[object, Rows] = {}
        self._room: int | None = None

    def keep(self, readings: Sequence[_Reading]) -> None:
        """Read what is not kept yet in one visit of the base, as far as there is room."""
        if self._room is None:
            self._room = int(SHARE * free_bytes(torch.device("cpu")))
        missing = [each for each in readings if each.key not in self._kept]
        if not missing or self._room <= 0:
            return
        with self._at_base() as model:
            for reading in missing:
                rows = _held(reading, model)
                self._room -= sum(logits.nbytes for _, logits in rows)
                if self._room <= 0:
                    break
                self._kept[reading.key] = rows

    def rows(self, reading: _Reading) -> Rows:
        """As `_Reading.rows` of the base, on the host."""
        if reading.key in self._kept:
            return self._kept[reading.key]
        with self._at_base() as model:
            return _held(reading, model)


def divergences(
    model: Any,
    sequences: Sequence[list[int]],
    budget: Budget,
    base: BaseLogits,
    *,
    is_shared: bool,
) -> Iterator[tuple[int, float]]:
    """Index and divergence of each sequence, once it is read.

    Args:
        model: A live model in evaluation mode.
        sequences: Token ids, none empty.
        budget: Bounds of a pass.
        base: The base.
        is_shared: The model reads trees; else each sequence is read whole.
    """
    readings = [
        _Reading(
            indices,
            PrefixTree.of([sequences[i] for i in indices], is_shared=is_shared),
            budget,
            is_shared,
        )
        for indices in _chunks(sequences, model)
    ]
    base.keep(readings)
    for reading in readings:
        tree = reading.tree
        by_node = [0.0] * len(tree.tokens)
        for (row, before), (_, after) in zip(base.rows(reading), reading.rows(model), strict=True):
            by_node[row.start : row.stop] = divergence(before, after)
        for index, node in zip(reading.indices, tree.last, strict=True):
            path = tree.path(node, len(sequences[index]))
            yield index, fmean(by_node[each] for each in path)


def divergence(base: Tensor, other: Tensor) -> list[float]:
    """KL(base || other) of the softmax at each position, in nats.

    Args:
        base: Logits, [positions, vocabulary].
        other: Likewise, on any device.
    """
    found: list[float] = []
    for start in range(0, len(base), MAX_POSITIONS):
        part = slice(start, start + MAX_POSITIONS)
        p = base[part].to(other.device).double().log_softmax(dim=-1)
        q = other[part].double().log_softmax(dim=-1)
        # What the base excludes adds nothing, though its logarithm is not finite.
        each = torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(dim=-1)
        found += each.clamp(min=0).tolist()
    return found


def _held(reading: _Reading, model: Any) -> Rows:
    return [(row, logits.to("cpu", copy=True)) for row, logits in reading.rows(model)]


def _chunks(sequences: Sequence[list[int]], model: Any) -> list[list[int]]:
    """Indices of sequences whose logits fit a chunk, those that share a prefix together."""
    per_token = model.config.get_text_config(decoder=True).vocab_size * 4
    chunks: list[list[int]] = []
    num_bytes = 0
    for index in sorted(range(len(sequences)), key=sequences.__getitem__):
        size = len(sequences[index]) * per_token
        if not chunks or num_bytes + size > CHUNK_BYTES:
            chunks.append([])
            num_bytes = 0
        chunks[-1].append(index)
        num_bytes += size
    return chunks
