"""Which part of a prefix tree is read by which forward pass.

Promised: the passes follow from the tree and the budget alone, so the same requests are read by
the same passes at every point.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.evaluate.shared_reading.prefix_tree import PrefixTree

MAX_WIDTH = 2048
"""Tokens in a row with branches: each is compared with all others, though few are related."""
MIN_TOKENS = 64


class Budget(NamedTuple):
    """How much is done at a time.

    Attributes:
        tokens: Tokens that a pass reads, padding included.
        rows: Sequences in a batch.
        cached_tokens: Tokens whose keys and values are held while completions are written.
    """

    tokens: int
    rows: int
    cached_tokens: int

    @property
    def width(self) -> int:
        """Tokens in a row with branches."""
        return min(self.tokens, MAX_WIDTH)

    @property
    def smaller(self) -> Budget | None:
        """Half of everything; None if there is nothing left to halve."""
        if self.rows == 1 and self.tokens <= MIN_TOKENS:
            return None
        tokens = max(self.tokens // 2, MIN_TOKENS)
        return Budget(tokens, max(self.rows // 2, 1), max(self.cached_tokens // 2, 1))


def passes(tree: PrefixTree, budget: Budget, *, is_shared: bool) -> list[list[range]]:
    """The rows of nodes that each pass reads.

    A tree that is too wide for a row is read in parts, one a pass and in order, so that each needs
    only the path to it of what was read before. Other trees are read whole, the largest first.

    Args:
        tree: What is read.
        budget: Bounds of a pass; a row that exceeds them is a pass by itself.
        is_shared: Trees may be read in parts.
    """
    width = budget.width if is_shared else sys.maxsize
    trees = sorted(tree.trees, key=lambda nodes: (-len(nodes), nodes.start))
    wide = [nodes for nodes in trees if len(nodes) > width]
    found = [[part] for nodes in wide for part in parts(nodes, width)]
    return found + _batches(trees[len(wide) :], budget)


def parts(nodes: range, width: int) -> list[range]:
    """Consecutive nodes, at most `width` at a time."""
    return [nodes[start : start + width] for start in range(0, len(nodes), width)]


def _batches(rows: Sequence[range], budget: Budget) -> list[list[range]]:
    """Rows, the longest first, in batches."""
    batches: list[list[range]] = []
    for row in rows:
        batch = batches[-1] if batches else []
        is_full = len(batch) == budget.rows
        if not batch or is_full or (len(batch) + 1) * len(batch[0]) > budget.tokens:
            batches.append([row])
        else:
            batch.append(row)
    return batches


def prompt_batches(tree: PrefixTree, budget: Budget, num_new_tokens: int) -> list[list[int]]:
    """Sequences of a tree that are continued together, in the order of their nodes.

    Args:
        tree: The tree of the prompts.
        budget: Bounds of a batch.
        num_new_tokens: New tokens of each sequence at most.
    """
    batches: list[list[int]] = []
    first = 0
    for index in sorted(range(len(tree.last)), key=lambda i: (tree.last[i], i)):
        size = len(batches[-1]) + 1 if batches else 1
        cached = tree.last[index] + 1 - first + size * num_new_tokens
        if not batches or size > budget.rows or cached > budget.cached_tokens:
            first = tree.last[batches[-1][-1]] + 1 if batches else 0
            batches.append([])
        batches[-1].append(index)
    return batches
