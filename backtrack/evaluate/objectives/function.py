"""A user's `function(model, tokenizer, item_ids)` as an objective, one score per item.

The function receives its own item ids, in the order it lists them. The working directory is on
`sys.path` while the function is imported and while it runs, and not after.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from backtrack.errors import BacktrackError, ObjectiveError
from backtrack.evaluate.objectives.items import (
    cluster_items,
    digest,
    finite,
    in_order,
    name_items,
    positions,
    with_clusters,
)
from backtrack.evaluate.objectives.objective import Objective
from backtrack.recipe import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backtrack.evaluate.language_model import LanguageModel
    from backtrack.recipe import PythonObjective


class FunctionScores(Objective):
    """Scores of a user's function. Its source is in the fingerprint; what it calls is not."""

    @override
    def __init__(self, section: PythonObjective, tokenizer: Any) -> None:
        self._spec = section.function
        self._function = lookup(section.function)
        self._own_ids = _own_ids(self._function, section)
        name = section.name or section.default_name
        self.item_ids = name_items(name, self._own_ids)
        if section.cluster is not None:
            self.clusters = cluster_items(self.item_ids, self._shared(section.cluster))
        fingerprint = digest("python", self._spec, _source(self._function), self.item_ids)
        self.info = section.info(with_clusters(fingerprint, self.clusters))

    @override
    def measure(self, model: LanguageModel, item_ids: Sequence[str]) -> tuple[float, ...]:
        """One score per item, in the order of `item_ids`, in the unit the recipe gives.

        Raises:
            ObjectiveError: The function fails, or does not return one finite number per item, or
                the model does not run in this process.
        """
        if not item_ids:
            return ()
        asked = positions(item_ids, self.item_ids, self.info.name)
        own_ids = [self._own_ids[index] for index in sorted(asked)]
        with importable(Path.cwd()), model.in_process() as torch_model:
            scores = self._call(torch_model, model.tokenizer, own_ids)
        return finite(in_order(asked, scores), item_ids, self.info.name)

    def _shared(self, spec: str) -> list[str]:
        """What each item shares, by the function that the recipe names for it."""
        function = lookup(spec)
        try:
            with importable(Path.cwd()):
                return [str(function(item_id)) for item_id in self._own_ids]
        except Exception as error:
            raise ObjectiveError(
                f"{spec} failed: {type(error).__name__}: {error}. As a `cluster` it is called "
                "with an item's id and returns the name of what the item shares with others."
            ) from error

    def _call(self, model: Any, tokenizer: Any, own_ids: list[str]) -> list[float]:
        import torch

        try:
            scores = [float(score) for score in self._function(model, tokenizer, own_ids)]
        except (BacktrackError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ObjectiveError(
                f"{self._spec} failed: {type(error).__name__}: {error}. It is called as "
                "function(model, tokenizer, item_ids) and returns one number an item."
            ) from error
        if len(scores) != len(own_ids):
            raise ObjectiveError(
                f"{self._spec} returned {len(scores)} scores for {len(own_ids)} items. "
                "Return one an item, in the order of the ids."
            )
        return scores


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def lookup(spec: str) -> Callable[..., Any]:
    module_name, colon, function_name = spec.partition(":")
    if not (module_name and colon and function_name):
        raise ObjectiveError(f"{spec!r} does not name a function. Write `module:function`.")
    try:
        with importable(Path.cwd()):
            module = importlib.import_module(module_name)
    except Exception as error:
        raise ObjectiveError(
            f"{spec}: module {module_name!r} cannot be imported: {type(error).__name__}: {error}. "
            f"Is it installed, or a file in {Path.cwd()}?"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ObjectiveError(
            f"{spec}: module {module_name!r} has no function {function_name!r}."
            f"{nearest(function_name, vars(module))}"
        )
    found: Callable[..., Any] = function
    return found


def _own_ids(function: Callable[..., Any], section: PythonObjective) -> tuple[str, ...]:
    if section.items is not None:
        return tuple(str(index) for index in range(section.items))
    listing = getattr(function, "item_ids", None)
    if not callable(listing):
        raise ObjectiveError(
            f"{section.function} does not say which items it has. Set `items` to their number in "
            "the recipe, or give the function an attribute `item_ids` that returns their names."
        )
    try:
        with importable(Path.cwd()):
            ids = tuple(str(item_id) for item_id in listing())
    except Exception as error:
        raise ObjectiveError(
            f"{section.function}.item_ids() failed: {type(error).__name__}: {error}."
        ) from error
    if not ids or len(set(ids)) != len(ids):
        raise ObjectiveError(
            f"{section.function}.item_ids() must list distinct names, at least one; "
            f"it lists {len(ids)}, of which {len(set(ids))} are distinct."
        )
    return ids


def _source(function: Callable[..., Any]) -> str:
    """The source of the function, or its name if it has none (a built-in)."""
    try:
        return inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return str(getattr(function, "__qualname__", type(function).__qualname__))
