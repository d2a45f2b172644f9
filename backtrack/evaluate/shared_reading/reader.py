"""A model that reads a prefix tree pass by pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from backtrack.evaluate.shared_reading.attention import attention_mask, related
from backtrack.evaluate.shared_reading.key_values import KeyValues
from backtrack.evaluate.shared_reading.passes import passes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from backtrack.evaluate.shared_reading.passes import Budget
    from backtrack.evaluate.shared_reading.prefix_tree import PrefixTree


class TreeReader:
    """Reads the nodes of a tree in order, and what is written after them.

    Attributes:
        keys: Node, end and position of each token that is held, [3, held]. A written token has
            the end 0: the tree does not know it.
    """

    def __init__(
        self, model: Any, tree: PrefixTree, *, copies: int = 1, is_shared: bool = True
    ) -> None:
        """Begin before the first node.

        Args:
            model: A live model.
            tree: What is read.
            copies: How often each row is in a batch, for models that differ by row.
            is_shared: The model reads trees; else only chains are read, each as it is.
        """
        self._model = model
        self._tree = tree
        self.copies = copies
        self._is_shared = is_shared
        facts = [range(len(tree.tokens)), tree.ends, tree.positions, tree.tokens]
        self._facts = torch.tensor([list(fact) for fact in facts], device=model.device)
        self.keys = self._facts[:3, :0]
        self._cache = KeyValues()

    def read_whole(self, rows: Sequence[range], columns: Sequence[int]) -> Tensor:
        """Read whole trees, one a row, and hold nothing.

        Args:
            rows: Their nodes; the first row is the longest.
            columns: Places in a row.

        Returns:
            Logits at the columns, [rows, columns, vocabulary].
        """
        device, width = self._model.device, len(rows[0])
        nodes = torch.tensor([[*row] + [row[-1]] * (width - len(row)) for row in rows])
        facts = self._facts[:, nodes.to(device)]
        at = torch.tensor(columns, dtype=torch.long, device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        is_padding = torch.arange(width, device=device) >= lengths[:, None]
        if not self._is_shared:
            return self._forward(facts[3], attention_mask=(~is_padding).long())[:, at]
        if all(map(self._tree.is_chain, rows)):
            # What pads a row comes after it, so a causal model needs no mask to leave it out.
            return self._forward(facts[3], logits_to_keep=at)
        keys, queries = facts[:3].clone(), facts[:3]
        keys[1][is_padding] = 0  # nobody sees what ends before it begins
        mask = attention_mask(self._model, related(keys, queries[0]), keys[2], queries[2])
        return self._forward(
            facts[3], attention_mask=mask, position_ids=queries[2], logits_to_keep=at
        )

    def read(self, part: range, columns: Sequence[int] = ()) -> Tensor:
        """Read the next nodes and hold them; returns logits as `read_whole`, of one row."""
        facts = self._facts[:, part.start : part.stop]
        keys = torch.cat([self.keys, facts[:3]], dim=1)
        visible = related(keys, facts[0])
        at = torch.tensor(columns, dtype=torch.long, device=self._model.device)
        return self._read_on(facts[3], facts[2], visible, keys, at)

    def write(self, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Read tokens that are not in the tree and hold them.

        Args:
            tokens: Token ids, [copies, tokens].
            positions: Their positions, [tokens].
            visible: What they may see of what is held and of each other, [tokens, held + tokens].

        Returns:
            Logits after each, [copies, tokens, vocabulary].
        """
        outside = torch.full_like(positions, len(self._tree.tokens))
        new = torch.stack([outside, torch.zeros_like(outside), positions])
        return self._read_on(tokens, positions, visible, torch.cat([self.keys, new], dim=1), 0)

    def _read_on(
        self, tokens: Tensor, positions: Tensor, visible: Tensor, keys: Tensor, at: Any
    ) -> Tensor:
        mask = attention_mask(self._model, visible[None], keys[None, 2], positions[None])
        logits = self._forward(
            tokens.expand(self.copies, -1),
            attention_mask=mask,
            position_ids=positions[None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=at,
        )
        self.keys = keys
        return logits

    def _forward(self, ids: Tensor, **asked: Any) -> Tensor:
        logits: Tensor = self._model(input_ids=ids, **{"use_cache": False, **asked}).logits
        return logits

    def on_path(self, node: int) -> Tensor:
        """Whether what is held leads to a node that is read next or was read last, [held]."""
        return self.keys[1] > node

    def keep(self, is_kept: Tensor) -> None:
        """Hold no more than what is marked, [held]."""
        index = is_kept.nonzero()[:, 0]
        self.keys = self.keys[:, index]
        self._cache.select(index)


def read_all(
    model: Any,
    tree: PrefixTree,
    budget: Budget,
    columns: Callable[[Sequence[range]], list[int]],
    *,
    is_shared: bool,
) -> Iterator[tuple[range, list[int], Tensor]]:
    """Read a whole tree; gives each row's nodes, columns and logits, [columns, vocabulary].

    Args:
        model: A live model in evaluation mode.
        tree: What is read.
        budget: Bounds of a pass.
        columns: Places in the rows of a pass whose logits are wanted, ascending.
        is_shared: The model reads trees; else only chains are read, each as it is.
    """
    reader = TreeReader(model, tree, is_shared=is_shared)
    for rows in passes(tree, budget, is_shared=is_shared):
        at = columns(rows)
        if all(map(tree.is_whole, rows)):
            logits = reader.read_whole(rows, at)
        else:
            logits = reader.read(rows[0], at)
            reader.keep(reader.on_path(rows[0].stop))
        for row, found in zip(rows, logits, strict=True):
            yield row, at, found
