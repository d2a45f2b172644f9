"""Find items that are shared with the training data, and note what a reader should know of them.

An item is shared with the training data if its text equals an example's text, or if at least
`OVERLAP` of its runs of `RUN_WORDS` words occur in the examples. Words are compared in lower case,
without punctuation; a Chinese or Japanese character is a word. Whole examples are compared, and
each of their prompts, completions, chat turns and columns.

Texts of fewer than `MIN_WORDS` words, or of fewer than `MIN_LETTERED` words with a letter, are not
compared. A label, name, date or number ("1", all that winogrande has for a prompt) occurs in data
that has nothing to do with the item. Without punctuation, "12 + 5.3" and "125 - 3" differ only by
where the digits are split. "What is 2 + 3?" is long enough: who has trained on it knows the item.

Promised: memory grows with the items, not with the training data, which is read example by
example. Data that cannot be read counts as unknown, never as free of items.
Not promised: paraphrases and translations are not found, nor items that have no text, such as
those of the user's own functions.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from itertools import chain, compress
from typing import TYPE_CHECKING

import numpy as np

from backtrack import formatting
from backtrack.errors import BacktrackError, RunError
from backtrack.evaluate.objectives.documents import iter_records, render
from backtrack.records import Record
from backtrack.run.files import read_record, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from backtrack.evaluate.objectives.objective import Objective
    from backtrack.recipe import DataSection, Recipe
    from backtrack.run.directory import Run

SHARED = "shared_items.json"
RUN_WORDS = 13
OVERLAP = 0.8
MIN_WORDS = 4
MIN_LETTERED = 2
_COLUMNS = ("prompt", "completion", "messages", "text", "question", "answer")
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_MULTIPLIERS = np.uint64(0x9E3779B97F4A7C15) ** np.arange(RUN_WORDS, dtype=np.uint64)
"""Powers of an odd number, modulo 2**64."""


class SharedItems(Record):
    """Items that are shared with the training data, as written to `shared_items.json`.

    Attributes:
        train: File, folder or Hub name of the training data; None if no recipe names it.
        failure: Why the training data could not be read to its end; empty if it was.
        items: Ids of the shared items by objective's name; an objective that was not compared is
            not listed. After a failure, those of the examples before it.
    """

    train: str | None
    failure: str = ""
    items: dict[str, tuple[str, ...]]


def record_shared_items(run: Run, shared: SharedItems) -> None:
    """Write `shared_items.json`."""
    write_atomically(run.path / SHARED, shared.model_dump_json(indent=2) + "\n")


def training_data(run: Run, recipe: Recipe | None) -> DataSection | None:
    """What a run was trained on, by its own recipe or else by what it is measured by."""
    recipes = (run.recipe, recipe)
    return next((each.data for each in recipes if each is not None and each.data), None)


def find_shared(data: DataSection | None, objectives: Sequence[Objective]) -> SharedItems:
    """Find the items that are shared with the training data.

    Args:
        data: What was trained on; None if that is unknown.
        objectives: What is measured.
    """
    if data is None:
        return SharedItems(train=None, items={})
    texts = {objective.info.name: objective.texts() for objective in objectives}
    index = _ItemIndex(chain.from_iterable(texts.values()))
    failure = _read_examples(data, index)
    is_shared = index.shared()
    items = {
        objective.info.name: tuple(compress(objective.item_ids, is_shared))
        for objective in objectives
        if texts[objective.info.name]
    }
    return SharedItems(train=data.train, failure=failure, items=items)


def _read_examples(data: DataSection, index: _ItemIndex) -> str:
    """Look each example up in the index; return why not all could be read, or an empty text."""
    has_text = False
    try:
        for number, record in enumerate(iter_records(data.train, data.subset, data.split)):
            texts = _texts(data, record, f"{data.train}, item {number}")
            has_text |= any(texts)
            index.look_up(texts)
    except BacktrackError as error:
        return str(error)
    return "" if has_text else f"{data.train} has no column of text or chat turns."


def _texts(data: DataSection, record: Mapping[str, Any], where: str) -> list[str]:
    """The texts of an example: prompt and completion, chat turns, or columns."""
    if data.prompt is not None:
        formats = [form for form in (data.prompt, data.completion) if form is not None]
        return [render(form, record, where) for form in formats]
    columns = [column for column in _COLUMNS if column in record] or record
    return [text for column in columns for text in _column_texts(record[column])]


def _column_texts(value: object) -> list[str]:
    if isinstance(value, list):
        return [str(turn.get("content", "")) for turn in value if isinstance(turn, dict)]
    return [value] if isinstance(value, str) else []


class _ItemIndex:
    """The items' texts and hashed runs of words, and which of them occur in examples."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._codes: dict[str, int] = {}
        self._wholes: list[str] = []
        hashes: list[NDArray[np.uint64]] = []
        for text in texts:
            words = _words(text)
            words = words if _is_telling(words) else []
            self._codes.update((w, _code(w)) for w in words if w not in self._codes)
            self._wholes.append(" ".join(words))
            hashes.append(self._run_hashes(words))
        self._num_runs = [len(h) for h in hashes]
        self._runs, self._columns = np.unique(
            np.concatenate([self._run_hashes([]), *hashes]), return_inverse=True
        )
        self._has_occurred = np.zeros(len(self._runs), dtype=bool)
        self._wanted = set(self._wholes) - {""}
        self._equalled: set[str] = set()

    def look_up(self, texts: Sequence[str]) -> None:
        """Mark what occurs in an example, given as texts that follow one another."""
        words = [_words(text) for text in texts]
        joined = list(chain.from_iterable(words))
        self._equalled |= self._wanted.intersection(map(" ".join, [*words, joined]))
        hashes = self._run_hashes(joined)
        if len(self._runs) and len(hashes):
            columns = np.minimum(np.searchsorted(self._runs, hashes), len(self._runs) - 1)
            self._has_occurred[columns[self._runs[columns] == hashes]] = True

    def shared(self) -> Iterator[bool]:
        """Whether each text is shared with the examples given to `look_up`, in order of texts."""
        ends = np.cumsum(self._num_runs, dtype=int)
        for whole, columns in zip(self._wholes, np.split(self._columns, ends), strict=False):
            num_occurred = self._has_occurred[columns].sum()
            has_overlap = bool(len(columns)) and num_occurred >= OVERLAP * len(columns)
            yield whole in self._equalled or has_overlap

    def _run_hashes(self, words: Sequence[str]) -> NDArray[np.uint64]:
        """Hash of each run of words, [max(0, words - RUN_WORDS + 1)].

        A hash is a polynomial of the words' codes, modulo 2**64. A word that no item has gets the
        code 0; no run with it equals one of an item, save by a collision of hashes.
        """
        if len(words) < RUN_WORDS:
            return np.empty(0, dtype=np.uint64)
        codes = np.array([self._codes.get(word, 0) for word in words], dtype=np.uint64)
        return np.convolve(codes, _MULTIPLIERS, "valid")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _is_telling(words: Sequence[str]) -> bool:
    """Whether words are enough to recognize an item by; see the module's docstring."""
    num_lettered = sum(any(map(str.isalpha, word)) for word in words)
    return len(words) >= MIN_WORDS and num_lettered >= MIN_LETTERED


def _code(word: str) -> int:
    """Hash of a word, the same in every process; text of a data set may hold lone surrogates."""
    data = word.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def contamination_notes(
    folder: Path, recipe: Recipe | None, used: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Notes of a selection on items that were trained on, and benchmarks that were chosen on.

    Args:
        folder: The run's folder.
        recipe: What was measured.
        used: Selection and report items by objective's name.
    """
    yield from _shared_notes(folder / SHARED, used)
    benchmarks = [o.name for o in recipe.objectives if o.is_benchmark] if recipe else []
    if benchmarks:
        yield (
            f"The point was chosen on items of {', '.join(benchmarks)}. Quote its scores on the "
            "report items: a score on the whole benchmark includes items it was chosen on."
        )


def _shared_notes(path: Path, used: Mapping[str, Sequence[str]]) -> Iterator[str]:
    shared = _read_shared(path)
    for name, ids in shared.items.items():
        used_ids = set(used.get(name, ()))
        both = [item_id for item_id in ids if item_id in used_ids]
        if both:
            yield (
                f"{len(both)} of {len(used[name])} items of {name} are shared with the training "
                f"data, first {both[0]}, so its scores look better than they are. {SHARED} lists "
                "them; leave them out."
            )
    others = [name for name in used if name not in shared.items]
    search = formatting.command("search", path.parent)
    again = f"Correct that, then run {search}, which compares them again."
    if shared.failure:
        yield (f"Whether items were trained on is unknown: {shared.failure} {again}")
    elif shared.train is None and path.exists():
        yield (
            "Whether items were trained on is unknown: no recipe names the training data under "
            f"`data:`. {again}"
        )
    elif others:
        yield (
            f"Whether items of {', '.join(others)} were trained on is unknown: only items of a "
            "recipe's objectives that have a text are compared with the training data."
        )


def _read_shared(path: Path) -> SharedItems:
    """What was found; a damaged file counts as a failure, a missing one as nothing compared."""
    if not path.exists():
        return SharedItems(train=None, items={})
    try:
        return read_record(path, SharedItems)
    except RunError as error:
        return SharedItems(train=None, failure=str(error), items={})
