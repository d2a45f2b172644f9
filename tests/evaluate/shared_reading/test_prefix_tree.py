"""The prefix tree and the plan of passes: pure, without a model."""

from __future__ import annotations

import random

import pytest

from backtrack.evaluate.shared_reading.passes import Budget, parts, passes, prompt_batches
from backtrack.evaluate.shared_reading.prefix_tree import PrefixTree

TRUNK = [1, 2, 3]
SEQUENCES = [[*TRUNK, 4, 5], [*TRUNK, 4, 6], [*TRUNK], [9, 9], [], [*TRUNK, 4, 5], [*TRUNK, 7]]


def random_sequences(seed: int, count: int = 40) -> list[list[int]]:
    """Sequences of few different tokens, so that many share a prefix."""
    rng = random.Random(seed)
    return [rng.choices(range(3), k=rng.randint(0, 9)) for _ in range(count)]


def test_a_shared_prefix_is_there_once() -> None:
    tree = PrefixTree.of(SEQUENCES)
    assert tree.tokens == [*TRUNK, 4, 5, 6, 7, 9, 9]
    assert tree.positions == [0, 1, 2, 3, 4, 4, 3, 0, 1]
    assert tree.ends == [7, 7, 7, 6, 5, 6, 7, 9, 9]
    assert tree.last == [4, 5, 2, 8, -1, 4, 6]
    assert tree.trees == [range(7), range(7, 9)]
    assert [tree.is_chain(nodes) for nodes in tree.trees] == [False, True]
    is_whole = [tree.is_whole(nodes) for nodes in (range(7), range(2), range(2, 7))]
    assert is_whole == [True, False, False]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("is_shared", [True, False])
def test_the_path_to_a_sequences_last_token_is_the_sequence(seed: int, is_shared: bool) -> None:
    sequences = random_sequences(seed)
    tree = PrefixTree.of(sequences, is_shared=is_shared)
    for ids, last in zip(sequences, tree.last, strict=True):
        assert [tree.tokens[node] for node in tree.path(last, len(ids))] == ids
        assert last == -1 or tree.positions[last] == len(ids) - 1


@pytest.mark.parametrize("seed", range(5))
def test_a_node_lies_between_another_and_its_end_exactly_if_it_descends_from_it(seed: int) -> None:
    tree = PrefixTree.of(random_sequences(seed))
    for node, position in enumerate(tree.positions):
        related = {k for k in range(len(tree.tokens)) if k <= node < tree.ends[k]}
        assert related == set(tree.path(node, position + 1))


def test_unshared_sequences_are_chains_of_their_own_and_equal_ones_are_one() -> None:
    tree = PrefixTree.of(SEQUENCES, is_shared=False)
    assert len(tree.tokens) == sum(map(len, SEQUENCES)) - 5
    assert all(map(tree.is_chain, tree.trees))
    assert tree.last[0] == tree.last[5]


@pytest.mark.parametrize("budget", [Budget(4, 9, 99), Budget(64, 2, 99), Budget(64, 99, 99)])
def test_passes_read_every_node_once_and_within_the_budget(budget: Budget) -> None:
    tree = PrefixTree.of([[n, *row] for n, row in enumerate(random_sequences(7, 12))])
    found = passes(tree, budget, is_shared=True)
    read = [node for rows in found for row in rows for node in row]
    assert sorted(read) == list(range(len(tree.tokens)))
    for rows in found:
        assert len(rows) <= budget.rows
        assert len(rows) * len(rows[0]) <= budget.tokens
        assert len(rows) == 1 or all(map(tree.is_whole, rows))
    assert passes(tree, budget, is_shared=True) == found


def test_a_wide_tree_is_read_in_parts_and_in_order_unless_it_must_be_whole() -> None:
    tree = PrefixTree.of(SEQUENCES)
    budget = Budget(3, 8, 99)
    assert passes(tree, budget, is_shared=True) == [
        [range(3)], [range(3, 6)], [range(6, 7)], [range(7, 9)],
    ]  # fmt: skip
    assert passes(tree, budget, is_shared=False) == [[range(7)], [range(7, 9)]]
    assert parts(range(4, 9), 2) == [range(4, 6), range(6, 8), range(8, 9)]


def test_prompts_are_completed_in_the_order_of_their_nodes_within_the_budget() -> None:
    tree = PrefixTree.of(SEQUENCES)
    assert prompt_batches(tree, Budget(9, 3, 99), 2) == [[4, 2, 0], [5, 1, 6], [3]]
    # Tokens that are held: those of the new prompts, and two new ones of each.
    assert prompt_batches(tree, Budget(9, 9, 9), 2) == [[4, 2], [0, 5, 1], [6, 3]]
    assert prompt_batches(tree, Budget(9, 9, 1), 2) == [[4], [2], [0], [5], [1], [6], [3]]
    assert prompt_batches(PrefixTree.of([]), Budget(9, 9, 9), 2) == []


def test_budgets_shrink_until_one_sequence_is_read_at_a_time() -> None:
    budget: Budget | None = Budget(1024, 16, 1 << 20)
    seen = []
    while budget is not None:
        seen.append(budget)
        budget = budget.smaller
    assert [each.tokens for each in seen] == [1024, 512, 256, 128, 64]
    assert seen[-1].rows == 1
