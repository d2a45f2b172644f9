from __future__ import annotations

import pytest

from backtrack.errors import ObjectiveError
from backtrack.selection.stats.items import clusters_of, nested_rungs, split_items, stratum


def ids(**sizes: int) -> list[str]:
    return [f"{name}/{i}" for name, size in sizes.items() for i in range(size)]


def count(item_ids: tuple[str, ...]) -> dict[str, int]:
    names = [stratum(item_id) for item_id in item_ids]
    return {name: names.count(name) for name in names}


def test_the_splits_are_disjoint_and_as_large_as_requested():
    selection, report = split_items(ids(a=300, b=100), 100, 60, seed=3)
    assert (len(selection), len(report)) == (100, 60)
    assert not set(selection) & set(report)


def test_each_stratum_gives_in_proportion_to_its_size():
    selection, report = split_items(ids(a=300, b=100, c=200), 60, 30, seed=3)
    assert count(selection) == {"a": 30, "b": 10, "c": 20}
    assert count(report) == {"a": 15, "b": 5, "c": 10}


def test_the_split_does_not_depend_on_the_order_of_items():
    items = ids(a=30, b=10)
    assert split_items(items[::-1], 8, 8, seed=3) == split_items(items, 8, 8, seed=3)


def test_another_seed_gives_another_split():
    assert split_items(ids(a=100), 20, 20, seed=3) != split_items(ids(a=100), 20, 20, seed=4)


def test_too_few_items_are_split_in_the_requested_proportion_without_overlap():
    selection, report = split_items(ids(a=20, b=10), 200, 100, seed=3)
    assert (len(selection), len(report)) == (20, 10)
    assert sorted([*selection, *report]) == sorted(ids(a=20, b=10))


def test_the_smaller_side_keeps_two_items_however_lopsided_the_request():
    selection, report = split_items(ids(a=5), 1000, 2, seed=0)
    assert (len(selection), len(report)) == (3, 2)


def test_three_items_are_refused():
    with pytest.raises(ObjectiveError, match="3 items cannot be split"):
        split_items(ids(a=3), 200, 200, seed=0)


def test_a_task_named_with_slashes_is_one_stratum():
    assert stratum("bbh/logic/seven/12") == "bbh/logic/seven"
    assert stratum("plain") == ""


def test_rungs_are_shares_of_every_stratum_and_make_up_all_items():
    items = ids(a=40, b=120)
    rungs = nested_rungs(items, (0.25, 0.5), seed=3)
    assert [len(rung) for rung in rungs] == [40, 40, 80]
    assert sorted(i for rung in rungs for i in rung) == sorted(items)
    for rung in rungs:
        assert sum(stratum(i) == "a" for i in rung) == len(rung) / 4
    assert nested_rungs(list(reversed(items)), (0.25, 0.5), seed=3) == rungs
    rungs = nested_rungs(items, (0.25, 0.5), 3, batch_size=16)
    assert [len(rung) for rung in rungs] == [48, 32, 80]


def in_clusters(item_ids: list[str], size: int) -> dict[str, str]:
    """Consecutive items of a stratum share something, `size` at a time."""
    names = [f"{stratum(i)}/{int(i.rpartition('/')[2]) // size * size}" for i in item_ids]
    return dict(zip(item_ids, names, strict=True))


@pytest.mark.parametrize("num", [(23, 18), (300, 200)])
def test_no_cluster_has_items_in_both_splits(num: tuple[int, int]):
    items = ids(a=60, b=45)
    clusters = in_clusters(items, 5)
    selection, report = split_items(items, *num, 3, clusters)
    assert not set(clusters_of(selection, clusters)) & set(clusters_of(report, clusters))
    if sum(num) < len(items):
        assert (len(selection), len(report)) == num
    else:
        assert len(items) - 2 * 4 <= len(selection) + len(report) <= len(items)


def test_items_of_a_cluster_come_together():
    items = ids(a=100)
    clusters = in_clusters(items, 5)
    selection, _ = split_items(items, 50, 50, 3, clusters)
    assert len(set(clusters_of(selection, clusters))) == 10
    rungs = nested_rungs(selection, (0.4,), 3, clusters=clusters)
    assert [len(set(clusters_of(rung, clusters))) for rung in rungs] == [4, 6]


def test_the_first_rung_has_items_of_two_clusters():
    items = ids(a=100)
    first = nested_rungs(items, (0.1,), 3, clusters=in_clusters(items, 20))[0]
    assert len(first) == 21


def test_clusters_too_few_to_split_are_refused():
    items = ids(a=90)
    with pytest.raises(ObjectiveError, match=r"30 report items from 1, and each needs at least 2"):
        split_items(items, 50, 30, 3, in_clusters(items, 30))
