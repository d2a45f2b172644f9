"""Find items that were trained on, and benchmarks that a point was chosen by.

An item is SHARED with the training data if its prompt, in lower case and without punctuation,
equals the prompt of an example, or if at least `OVERLAP` of its runs of thirteen words occur in
the examples (items of fewer words must be equal). Compared are the prompts of `examples`, the
documents of lm-eval tasks as they are asked, and the windows of running text. The result is
recorded, so choosing again reads no data.
Not covered: Python functions, whose items are names only.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from backtrack.errors import BacktrackError
from backtrack.evaluate.objectives.documents import load_records, render
from backtrack.run.files import read_record, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.recipe import DataSection, Recipe

    Shared = dict[str, list[str]]

SHARED = "shared_items.json"
RUN_WORDS = 13
OVERLAP = 0.8
_COLUMNS = ("prompt", "completion", "messages", "text", "question", "answer")


def find_shared(section: DataSection | None, objectives: Iterable[Objective]) -> Shared:
    """Items that are in the training data too, by objective's name.

    Args:
        section: What was trained on, if that is known.
        objectives: What is measured.

    Data that cannot be read finds nothing: a search does not need it.
    """
    if section is None:
        return {}
    try:
        known = _Known(_training_texts(section))
    except BacktrackError:
        return {}
    found: Shared = {}
    for objective in objectives:
        texts = objective.texts() or ("",) * len(objective.item_ids)
        pairs = zip(objective.item_ids, texts, strict=True)
        shared = [item_id for item_id, text in pairs if known.holds(text)]
        if shared:
            found[objective.info.name] = shared
    return found


def _training_texts(section: DataSection) -> Iterator[str]:
    """Each example's prompt, and all of its text as one."""
    for i, record in enumerate(load_records(section.train, section.subset, section.split)):
        if section.prompt is not None and section.completion is not None:
            prompt = render(section.prompt, record, f"{section.train}, item {i}")
            yield prompt
            yield prompt + render(section.completion, record, f"{section.train}, item {i}")
            continue
        rungs = [_flat(record[column]) for column in _COLUMNS if column in record]
        yield from rungs
        yield " ".join(rungs)


def _flat(value: object) -> str:
    """A column as text: turns of a chat one after the other."""
    if isinstance(value, list):
        return " ".join(str(turn.get("content", "")) for turn in value if isinstance(turn, dict))
    return str(value)


class _Known:
    """Texts that were trained on: whole, and as runs of words."""

    def __init__(self, texts: Iterable[str]) -> None:
        words = [_words(text) for text in texts]
        self._whole = {" ".join(each) for each in words}
        self._runs = {run for each in words for run in _runs(each)}

    def holds(self, text: str) -> bool:
        words = _words(text)
        if " ".join(words) in self._whole:
            return bool(words)
        runs = list(_runs(words))
        return bool(runs) and sum(run in self._runs for run in runs) >= OVERLAP * len(runs)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(words: Sequence[str]) -> Iterator[int]:
    for i in range(len(words) - RUN_WORDS + 1):
        yield hash(tuple(words[i : i + RUN_WORDS]))


def write_shared(folder: Path, found: Mapping[str, Sequence[str]]) -> None:
    """Keep what was found beside the measurements."""
    write_atomically(folder / SHARED, json.dumps(found, indent=2) + "\n")


def guard_notes(
    folder: Path, recipe: Recipe | None, used: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """What a reader should know of the items.

    Args:
        folder: The run's.
        recipe: What was measured.
        used: Selection and report items by objective's name.
    """
    path = folder / SHARED
    remedy = "Delete it and search again."
    shared = read_record(path, dict[str, list[str]], remedy) if path.exists() else {}
    for name, ids in shared.items():
        both = [item_id for item_id in ids if item_id in set(used.get(name, ()))]
        if both:
            yield (
                f"{len(both)} of {len(used[name])} items of {name} are in the training data too, "
                f"first {both[0]}: its scores flatter. All are in {SHARED}; leave them out."
            )
    benchmarks = [o.name for o in recipe.objectives if o.is_benchmark] if recipe else []
    if benchmarks:
        yield (
            f"The point was chosen on items of {', '.join(benchmarks)}. Report the items kept "
            "apart, as above; a score on the whole benchmark would count items the choice saw."
        )
