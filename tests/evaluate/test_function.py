"""A function of the user's, found in the working directory, and what it may get wrong."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from backtrack.errors import ObjectiveError
from backtrack.evaluate.build import build_objectives
from tests.evaluate.asking import as_model

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """
import math

def named(model, tokenizer, item_ids):
    assert not model.training
    import {helper}
    return [{helper}.VALUES[item] for item in item_ids]

named.item_ids = lambda: ["b", "a", "deep/c"]

def counted(model, tokenizer, item_ids):
    return [float(item) for item in item_ids]

def short(model, tokenizer, item_ids):
    return [1.0]

def endless(model, tokenizer, item_ids):
    return [math.inf for item in item_ids]

def broken(model, tokenizer, item_ids):
    raise RuntimeError("no luck")

def passage(item_id):
    return item_id.rpartition("/")[0]

def unsure(item_id):
    raise KeyError(item_id)

def repeated(model, tokenizer, item_ids):
    return []

repeated.item_ids = lambda: ["a", "a"]

def passages(model, tokenizer, item_ids):
    return []

passages.item_ids = lambda: ["a/1", "a/2", "b/1", "c"]

def alike(model, tokenizer, item_ids):
    return []

alike.item_ids = lambda: ["a/b", "a:b"]
"""


@pytest.fixture
def build(tmp_path: Path, monkeypatch, recipe_of, request):
    """The objective of a function in a module of the working directory."""
    module = f"mine_{abs(hash(request.node.name))}"
    (tmp_path / f"{module}.py").write_text(MODULE.format(helper=f"{module}_helper"))
    (tmp_path / f"{module}_helper.py").write_text("VALUES = {'a': 1, 'b': 2, 'deep/c': 3}\n")
    monkeypatch.chdir(tmp_path)

    def first(name: str, **settings: Any) -> Any:
        settings = {"kind": "python", "function": f"{module}:{name}", **settings}
        return build_objectives(recipe_of(settings), None)[0]

    yield first
    for name in [name for name in sys.modules if name.startswith(module)]:
        del sys.modules[name]


def test_scores_come_in_the_order_asked(build, model):
    objective = build("named")
    assert objective.item_ids == ("named/b", "named/a", "named/deep:c")
    asked = ["named/deep:c", "named/b", "named/a"]
    assert objective.measure(as_model(model, None), asked) == (3, 2, 1)


def test_items_can_be_counted_instead_of_named(build, model):
    objective = build("counted", items=12, direction="minimize", unit="words", range=[9, 0])
    assert objective.measure(as_model(model, None), ["counted/11", "counted/2"]) == (11, 2)
    assert (objective.info.direction, objective.info.unit) == ("minimize", "words")


def test_the_import_path_is_as_before(build, model):
    before = list(sys.path)
    build("named").measure(as_model(model, None), ["named/a"])
    assert sys.path == before


def test_fingerprint_covers_the_source_and_the_items(build, tmp_path):
    kept = build("counted", items=3).info.fingerprint
    assert build("counted", items=3).info.fingerprint == kept
    assert build("counted", items=4).info.fingerprint != kept
    (path,) = [p for p in tmp_path.glob("mine_*.py") if "helper" not in p.name]
    path.write_text(path.read_text().replace("float(item)", "float(item) + 1"))
    del sys.modules[path.stem]
    assert build("counted", items=3).info.fingerprint != kept


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        ("nmaed", {}, "has no function 'nmaed'.*Did you mean 'named'"),
        ("counted", {}, "does not say which items it has"),
        ("repeated", {}, "must list distinct names"),
        ("x", {"function": "no_such_module_here:f"}, "cannot be imported: ModuleNotFoundError"),
        ("x", {"function": "no_colon"}, "Write `module:function`"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_at_once(build, function, settings, message):
    with pytest.raises(ObjectiveError, match=message):
        build(function, **settings)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("short", "returned 1 scores for 2 items"),
        ("endless", "is inf"),
        ("broken", "failed: RuntimeError: no luck"),
    ],
)
def test_what_a_function_gets_wrong_is_named(build, model, function, message):
    objective = build(function, items=2)
    with pytest.raises(ObjectiveError, match=message):
        objective.measure(as_model(model, None), objective.item_ids)
    assert not model.training


def test_a_function_says_what_items_share(build, request):
    module = f"mine_{abs(hash(request.node.name))}"
    objective = build("passages", cluster=f"{module}:passage")
    assert objective.item_ids == ("passages/a:1", "passages/a:2", "passages/b:1", "passages/c")
    assert objective.clusters == {
        "passages/a:1": "passages/a:1",
        "passages/a:2": "passages/a:1",
        "passages/b:1": "passages/b:1",
    }
    assert objective.info.fingerprint != build("passages").info.fingerprint
    with pytest.raises(ObjectiveError, match=r"unsure failed: KeyError.* what the item shares"):
        build("passages", cluster=f"{module}:unsure")


def test_ids_that_differ_in_a_slash_only_are_numbered(build):
    assert build("alike").item_ids == ("alike/0", "alike/1")
