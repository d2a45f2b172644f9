"""Token sequences as a tree that holds each shared prefix once.

Nodes are tokens, numbered in preorder: the descendants of a node are the numbers after its own,
up to its end. So one token may see another exactly if it lies between that one and its end, and
what is read from left to right needs no more of the past than the path to the next node.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class PrefixTree:
    """A forest of tokens in preorder; every list but the last is by node.

    Attributes:
        tokens: Token ids.
        positions: Number of tokens before each in its sequences.
        parents: The node before, -1 for the first token of a sequence.
        ends: One more than the last descendant.
        last: The node of each sequence's last token, -1 for an empty one.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, sequences: Sequence[list[int]], *, is_shared: bool = True) -> PrefixTree:
        """The tree of sequences, the same for the same sequences.

        Args:
            sequences: Token ids.
            is_shared: Prefixes are shared; else only equal sequences are, each a tree of its own.
        """
        tree = cls(last=[-1] * len(sequences))
        path: list[int] = []
        before: list[int] = []
        for index in sorted(range(len(sequences)), key=sequences.__getitem__):
            ids = sequences[index]
            depth = num_shared(before, ids) if is_shared or ids == before else 0
            tree._close(path, depth)
            for token in ids[depth:]:
                tree._append(path, token)
            tree.last[index] = path[-1] if path else -1
            before = ids
        tree._close(path, 0)
        return tree

    def _append(self, path: list[int], token: int) -> None:
        self.parents.append(path[-1] if path else -1)
        self.positions.append(len(path))
        path.append(len(self.tokens))
        self.tokens.append(token)
        self.ends.append(0)

    def _close(self, path: list[int], depth: int) -> None:
        """End the nodes of a path from `depth` on, and take them from it."""
        for node in path[depth:]:
            self.ends[node] = len(self.tokens)
        del path[depth:]

    @property
    def trees(self) -> list[range]:
        """The nodes of each tree of the forest, in order."""
        found = []
        start = 0
        while start < len(self.tokens):
            found.append(range(start, self.ends[start]))
            start = self.ends[start]
        return found

    def is_whole(self, nodes: range) -> bool:
        """Whether nodes are a tree of the forest, and not a part of one."""
        return self.positions[nodes.start] == 0 and self.ends[nodes.start] == nodes.stop

    def is_chain(self, tree: range) -> bool:
        """Whether a tree has no branches."""
        return self.positions[tree.stop - 1] == len(tree) - 1

    def path(self, node: int, length: int) -> list[int]:
        """The last nodes on the way to a node and the node itself, `length` in all."""
        found = []
        for _ in range(length):
            found.append(node)
            node = self.parents[node]
        return found[::-1]


def num_shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common prefix."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
