"""Completions of prompts that share what they begin with, written beside each other.

The prompts of a batch are one tree, read once; what is written after each is a branch of its own.
All branches are one row: the shared prefix is held once, not once a prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from backtrack.evaluate.shared_reading.attention import related
from backtrack.evaluate.shared_reading.passes import parts, prompt_batches
from backtrack.evaluate.shared_reading.prefix_tree import PrefixTree
from backtrack.evaluate.shared_reading.reader import TreeReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from backtrack.evaluate.shared_reading.passes import Budget


MOST_OWN = 0.75
"""Share of the prompts' tokens that may be nobody else's, for them to be written side by side."""


class Decoding(Protocol):
    """How the next tokens are chosen, and where a completion ends."""

    max_new_tokens: int

    def next_tokens(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        """Tokens [copies, prompts] after logits [copies, prompts, vocabulary]."""
        ...

    def is_over(self, written: Sequence[int]) -> bool:
        """Whether new tokens end a completion."""
        ...


def share_much(prompts: Sequence[list[int]]) -> bool:
    """Whether prompts share enough to be completed as branches of one tree."""
    return len(PrefixTree.of(prompts).tokens) <= MOST_OWN * sum(map(len, prompts))


def completions(
    model: Any,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    budget: Budget,
    copies: int = 1,
) -> Iterator[tuple[int, list[list[int]]]]:
    """Index and completions of each prompt, new token ids by copy, once its batch is done.

    Args:
        model: A live model in evaluation mode that reads trees.
        prompts: Token ids, none empty.
        decoding: How tokens are chosen; it knows the prompts by their index.
        budget: Bounds of a pass and of a batch.
        copies: How often each prompt is completed, by models that differ by row.
    """
    # A prompt's last token is read with the first step of writing, whose logits it gives.
    tree = PrefixTree.of([ids[:-1] for ids in prompts])
    reader = TreeReader(model, tree, copies=copies)
    num_read = 0
    batches = prompt_batches(tree, budget, decoding.max_new_tokens * copies)
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        end = tree.last[batch[-1]] + 1
        for part in parts(range(num_read, end), budget.width):
            reader.read(part)
        num_read = end
        # The next batch may begin with a prompt that this one ends with.
        next_node = min([num_read, *(tree.last[index] for index in following)])
        written = _Branches(reader, tree, prompts, batch, decoding).write(next_node)
        yield from zip(batch, written, strict=True)
        reader.keep(reader.on_path(next_node))


class _Branches:
    """What is written after the prompts of a batch; those that have ended leave it."""

    def __init__(
        self,
        reader: TreeReader,
        tree: PrefixTree,
        prompts: Sequence[list[int]],
        batch: Sequence[int],
        decoding: Decoding,
    ) -> None:
        self._reader, self._decoding, self._batch = reader, decoding, batch
        self._copies = reader.copies
        device = reader.keys.device
        last = torch.tensor([tree.last[index] for index in batch], device=device)
        self._visible = related(reader.keys, last)
        newest = torch.tensor([prompts[index][-1] for index in batch], device=device)
        self._newest = newest.expand(self._copies, -1)
        lengths = [len(prompts[index]) for index in batch]
        self._positions = torch.tensor(lengths, device=device) - 1
        self._open = list(range(len(batch)))
        self._written: list[list[list[int]]] = [[[] for _ in range(self._copies)] for _ in batch]
        self._is_over = [[False] * self._copies for _ in batch]

    def write(self, next_node: int) -> list[list[list[int]]]:
        """Write until every completion has ended; returns token ids by prompt and copy.

        Args:
            next_node: The node that will be read or seen next; the path to it stays held.
        """
        num_held = len(self._open)
        for _ in range(self._decoding.max_new_tokens):
            self._step()
            self._leave()
            if not self._open:
                break
            if len(self._open) <= num_held // 2:
                num_held = len(self._open)
                self._forget(next_node)
        return self._written

    def _step(self) -> None:
        own = torch.eye(len(self._open), dtype=torch.bool, device=self._visible.device)
        self._visible = torch.cat([self._visible, own], dim=1)
        logits = self._reader.write(self._newest, self._positions, self._visible)
        prompts = [self._batch[i] for i in self._open]
        self._newest = self._decoding.next_tokens(logits, prompts)
        self._positions = self._positions + 1
        for row, tokens in zip(self._open, self._newest.T.tolist(), strict=True):
            for copy, token in enumerate(tokens):
                self._append(row, copy, token)

    def _append(self, row: int, copy: int, token: int) -> None:
        written, is_over = self._written[row][copy], self._is_over[row]
        if not is_over[copy]:
            written.append(token)
            is_over[copy] = self._decoding.is_over(written)

    def _leave(self) -> None:
        """Close the branches whose completions have all ended."""
        at = [i for i, row in enumerate(self._open) if not all(self._is_over[row])]
        if len(at) < len(self._open):
            self._open = [self._open[i] for i in at]
            self._newest, self._positions = self._newest[:, at], self._positions[at]
            self._visible = self._visible[at]

    def _forget(self, next_node: int) -> None:
        """Hold no longer what only closed branches could see."""
        is_kept = self._visible.any(dim=0) | self._reader.on_path(next_node)
        self._reader.keep(is_kept)
        self._visible = self._visible[:, is_kept]
