"""Likelihoods of continuations, read pass by pass."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import log_softmax

from backtrack.evaluate.language_model import Likelihood
from backtrack.evaluate.shared_reading.prefix_tree import PrefixTree
from backtrack.evaluate.shared_reading.reader import read_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from backtrack.evaluate.language_model import ScoredSequence
    from backtrack.evaluate.shared_reading.passes import Budget

MAX_SCORED = 256
"""Positions in fp32 at a time: a whole pass of a large vocabulary would not fit."""


def likelihoods(
    model: Any, sequences: Sequence[ScoredSequence], budget: Budget, *, is_shared: bool
) -> Iterator[tuple[int, Likelihood]]:
    """Index and likelihood of each sequence, once the pass with its last token is done.

    Args:
        model: A live model in evaluation mode.
        sequences: None is empty; the last token of each is scored and not read.
        budget: Bounds of a pass.
        is_shared: The model reads trees; else each sequence is read whole.
    """
    tree = PrefixTree.of([sequence.ids[:-1] for sequence in sequences], is_shared=is_shared)
    scores = _Scores(tree, sequences)
    for row, columns, logits in read_all(model, tree, budget, scores.columns, is_shared=is_shared):
        scores.add(row, columns, logits)
        yield from scores.complete(row)


class _Scores:
    """What is known of each sequence so far."""

    def __init__(self, tree: PrefixTree, sequences: Sequence[ScoredSequence]) -> None:
        self._asked: dict[int, list[tuple[int, int]]] = defaultdict(list)
        """By node: the sequences that score the token after it, and that token."""
        self._ending: dict[int, list[int]] = defaultdict(list)
        self._log_likelihoods = [0.0] * len(sequences)
        self._is_greedy = [True] * len(sequences)
        for index, sequence in enumerate(sequences):
            self._ending[tree.last[index]].append(index)
            nodes = tree.path(tree.last[index], sequence.num_scored)
            for node, token in zip(nodes, sequence.ids[sequence.first :], strict=True):
                self._asked[node].append((index, token))

    def columns(self, rows: Sequence[range]) -> list[int]:
        """Places in a row at which some row is scored, ascending."""
        return sorted({node - row.start for row in rows for node in row if node in self._asked})

    def add(self, row: range, columns: Sequence[int], logits: Tensor) -> None:
        """Count what the logits of a row say, [columns, vocabulary]."""
        inside = [(i, row.start + column) for i, column in enumerate(columns) if column < len(row)]
        at = [(i, node) for i, node in inside if node in self._asked]
        for start in range(0, len(at), MAX_SCORED):
            part = at[start : start + MAX_SCORED]
            found = logits[[i for i, _ in part]].float()
            self._count([node for _, node in part], log_softmax(found, dim=-1))

    def _count(self, nodes: Sequence[int], log_probabilities: Tensor) -> None:
        asked = [(i, *each) for i, node in enumerate(nodes) for each in self._asked[node]]
        at, _, tokens = torch.tensor(asked, device=log_probabilities.device).T
        values = log_probabilities[at, tokens].double().tolist()
        greedy = (log_probabilities.argmax(dim=-1)[at] == tokens).tolist()
        for (_, index, _), value, is_greedy in zip(asked, values, greedy, strict=True):
            self._log_likelihoods[index] += value
            self._is_greedy[index] &= is_greedy

    def complete(self, row: range) -> Iterator[tuple[int, Likelihood]]:
        """Those whose last token that is read lies in a row."""
        for node in row:
            for index in self._ending.get(node, ()):
                yield index, Likelihood(self._log_likelihoods[index], self._is_greedy[index])
