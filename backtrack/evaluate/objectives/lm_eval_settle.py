"""Make a task of lm-eval deterministic: same documents, few-shot examples and seeds at each call.

Tasks come as lm-eval built them; this module does not import lm-eval.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from backtrack.errors import ObjectiveError
from backtrack.evaluate.objectives.items import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from backtrack.recipe import LmEvalObjective

SEED = 1234
"""Seed of few-shot examples and of tasks that sample; the default of lm-eval."""
NUM_PROBES = 8
"""Number of evenly spaced prompts in the fingerprint of a task."""
_LENGTH_ALIASES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def settle(name: str, task: Any, settings: LmEvalObjective) -> None:
    """Apply the settings of the recipe to a task, and fix its documents and few-shot examples.

    Raises:
        ObjectiveError: The task is not about text, runs code the model writes, or cannot build a
            prompt.
    """
    _check_kind(name, task)
    if settings.num_fewshot is not None:
        task.set_config("num_fewshot", settings.num_fewshot)
    if settings.max_gen_toks is not None and task.OUTPUT_TYPE == "generate_until":
        given = dict(task.get_config("generation_kwargs") or {})
        kept = {key: value for key, value in given.items() if key not in _LENGTH_ALIASES}
        task.set_config("generation_kwargs", kept | {"max_gen_toks": settings.max_gen_toks})
    _fix_documents(task)
    _fix_fewshot(task)
    _probe(name, task)


def _check_kind(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise ObjectiveError(
            f"task {name!r} runs code that the model writes. That is not supported here; "
            "choose another task."
        )
    if getattr(task, "MULTIMODAL", False):
        raise ObjectiveError(
            f"task {name!r} needs images or sound; only text is supported. Choose another task."
        )


def _fix_documents(task: Any) -> None:
    """Build the documents once, as some tasks shuffle their choices at each build."""
    documents = task.eval_docs
    if task.has_test_docs():
        task.test_docs = lambda: documents
    else:
        task.validation_docs = lambda: documents


def _fix_fewshot(task: Any) -> None:
    """Seed the few-shot examples of a document by the document alone."""
    draw: Callable[..., Any] = task.fewshot_context

    def fewshot_context(doc: Any, *args: Any, **kwargs: Any) -> Any:
        task.set_fewshot_seed(int(_sha256(f"{SEED} {_as_text(doc)}")[:16], 16))
        return draw(doc, *args, **kwargs)

    task.fewshot_context = fewshot_context


def _probe(name: str, task: Any) -> None:
    """Build one prompt, so that a task that cannot fails before the model is used."""
    try:
        _prompt(task, task.eval_docs[0])
    except Exception as error:
        raise ObjectiveError(
            f"task {name!r} cannot build its first prompt: {type(error).__name__}: {error} "
            f"It was asked for {task.get_config('num_fewshot') or 0} few-shot examples "
            "(`num_fewshot`)."
        ) from error


def _prompt(task: Any, document: Any) -> Any:
    return task.fewshot_context(document, num_fewshot=task.get_config("num_fewshot") or 0)


@contextmanager
def one_call(tasks: Iterable[Any]) -> Iterator[None]:
    """Disable the aggregation of lm-eval, and drop its prompts and answers afterwards.

    lm-eval aggregates every metric over the requested documents, and aggregates of whole sets (F1,
    a correlation) fail on a few. Only the scores of single documents are used here.
    """
    listed = list(tasks)
    for task in listed:
        task.aggregation = _Counts
    try:
        yield
    finally:
        for task in listed:
            del task.aggregation
            task._instances = None  # noqa: SLF001


class _Counts(dict[str, Any]):
    """Aggregates any metric to its number of scores."""

    def __missing__(self, metric: str) -> Any:
        return len


def task_digest(task: Any) -> str:
    """Digest a settled task: its settings, its documents, and a few built prompts.

    The path of its file is left out, as a copied task is the same task.
    """
    config = {key: value for key, value in task.dump_config().items() if key != "metadata"}
    metadata = dict(task.get_config("metadata") or {})
    metadata.pop("config_source", None)
    documents = task.eval_docs
    stride = max(1, len(documents) // NUM_PROBES)
    return digest(
        _as_text([config, metadata]),
        [_sha256(_as_text(document)) for document in documents],
        [_as_text(_prompt(task, documents[n])) for n in range(0, len(documents), stride)],
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _as_text(value: Any) -> str:
    """Write a value as JSON, functions as their source, without memory addresses."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=_plain)
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _plain(value: Any) -> str:
    if inspect.isfunction(value) or inspect.isclass(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return f"{value.__module__}.{value.__qualname__}"
    return str(value)


@contextmanager
def fixed_seeds() -> Iterator[None]:
    """Seed the global generators of Python and torch inside, and restore them after."""
    import torch

    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    state = random.getstate()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(SEED)
        random.seed(SEED)
        try:
            yield
        finally:
            random.setstate(state)
