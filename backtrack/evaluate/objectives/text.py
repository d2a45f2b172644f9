"""Bits per byte of running text, window by window.

The text is encoded once, without special tokens, and cut into windows of consecutive tokens that
do not overlap; a remainder shorter than a window is left out. Each window is read on its own,
after the BOS token if the tokenizer adds one. The first token of a window is read and not scored,
as it has no context. The score is the bits of the scored tokens divided by the UTF-8 bytes they
encode; the bytes of a character shared by two windows count in the first.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from backtrack.errors import ObjectiveError
from backtrack.evaluate.encoding import encode
from backtrack.evaluate.language_model import ScoredSequence
from backtrack.evaluate.objectives.documents import JSONL_SUFFIXES, load_records, render_field
from backtrack.evaluate.objectives.items import (
    cluster_items,
    digest,
    finite,
    in_order,
    positions,
    with_clusters,
)
from backtrack.evaluate.objectives.objective import Objective
from backtrack.records.answers import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backtrack.evaluate.language_model import LanguageModel
    from backtrack.recipe import TextObjective

SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of the text.

    Attributes:
        number: Index among all windows of the text.
        ids: Token ids; the first is not scored.
        num_bytes: UTF-8 bytes that the scored tokens encode.
        begin: Where in the running text it begins.
        text: The text of all tokens.
    """

    number: int
    ids: tuple[int, ...]
    num_bytes: int
    begin: int
    text: str


@dataclass(frozen=True)
class _RunningText:
    """The text that windows are cut from.

    Attributes:
        text: The text.
        begins: Where each record begins, ascending; empty if records share nothing.
        shared: What each record shares with others, see `TextObjective.cluster`.
    """

    text: str
    begins: tuple[int, ...] = ()
    shared: tuple[str, ...] = ()

    def shared_at(self, position: int) -> str:
        """What the record at a position shares; empty if nothing."""
        return self.shared[bisect_right(self.begins, position) - 1] if self.shared else ""


class BitsPerByte(Objective):
    """One score per window: bits per byte, lower is better."""

    @override
    def __init__(self, section: TextObjective, tokenizer: Any) -> None:
        text = _running_text(section)
        self._windows = _windows(text.text, tokenizer, section)
        self._opening = _opening(tokenizer)
        name = section.name or section.default_name
        self.item_ids = tuple(f"{name}/{window.number}" for window in self._windows)
        self.clusters = cluster_items(
            self.item_ids, [text.shared_at(w.begin) for w in self._windows]
        )
        windows = [[w.number, w.ids, w.num_bytes] for w in self._windows]
        fingerprint = digest("text", self._opening, self.item_ids, windows)
        self.info = section.info(with_clusters(fingerprint, self.clusters))

    @override
    def measure(self, model: LanguageModel, item_ids: Sequence[str]) -> tuple[float, ...]:
        """Bits per byte of each window, in the order of `item_ids`.

        Raises:
            ObjectiveError: An item is unknown, a window is longer than the model's context, or a
                score is not finite.
        """
        asked = positions(item_ids, self.item_ids, self.info.name)
        windows = [self._windows[index] for index in sorted(asked)]
        first = len(self._opening) + 1
        sequences = [ScoredSequence([*self._opening, *window.ids], first) for window in windows]
        self._require_room(model, sequences)
        likelihoods = model.score(sequences)
        for index, likelihood in zip(sorted(asked), likelihoods, strict=True):
            said = Answer(likelihoods=(likelihood.log_likelihood,))
            model.note(self.item_ids[index], said)
        bits = [
            -likelihood.log_likelihood / math.log(2) / window.num_bytes
            for likelihood, window in zip(likelihoods, windows, strict=True)
        ]
        return finite(in_order(asked, bits), item_ids, self.info.name)

    @override
    def texts(self) -> tuple[str, ...]:
        """The text of each window."""
        return tuple(window.text for window in self._windows)

    @override
    @classmethod
    def tokens_per_item(
        cls, section: TextObjective, num_tokens: Callable[[str], float]
    ) -> float | None:
        return float(section.window_tokens)

    def _require_room(self, model: LanguageModel, sequences: Sequence[ScoredSequence]) -> None:
        limit = model.context_tokens
        longest = max((len(sequence.ids) for sequence in sequences), default=0)
        if limit is not None and longest > limit:
            raise ObjectiveError(
                f"{self.info.name}: a window has {longest} tokens, the model's context {limit}. "
                "Lower `window_tokens`."
            )


def _running_text(section: TextObjective) -> _RunningText:
    """The text from the fraction `start` on; records are joined by an empty line."""
    path = Path(section.path)
    if path.is_file() and path.suffix not in JSONL_SUFFIXES:
        return _from(_text_of_file(path, section), section.start)
    records = load_records(section.path, section.subset, section.split)
    named = [(record, f"{path} record {index}") for index, record in enumerate(records)]
    texts = [render_field(section.field, record, where) for record, where in named]
    whole = _RunningText(SEPARATOR.join(texts))
    if section.cluster is not None:
        lengths = [len(text) + len(SEPARATOR) for text in texts]
        whole = replace(
            whole,
            begins=(0, *accumulate(lengths[:-1])),
            shared=tuple(render_field(section.cluster, record, where) for record, where in named),
        )
    return _from(whole, section.start)


def _text_of_file(path: Path, section: TextObjective) -> _RunningText:
    if section.cluster is not None:
        raise ObjectiveError(
            f"{path} is plain text without fields, so `cluster: {section.cluster}` names nothing. "
            "Leave it out, or give a JSONL file."
        )
    try:
        return _RunningText(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ObjectiveError(f"{path} cannot be read as UTF-8 text: {error}.") from error


def _from(whole: _RunningText, start: float) -> _RunningText:
    """Cut off a fraction of the text at its beginning."""
    cut = int(len(whole.text) * start)
    begins = tuple(begin - cut for begin in whole.begins)
    return _RunningText(whole.text[cut:], begins, whole.shared)


def _windows(text: str, tokenizer: Any, section: TextObjective) -> tuple[Window, ...]:
    """At most `max_items` windows, evenly spaced over the text."""
    if not tokenizer.is_fast:
        raise ObjectiveError(
            f"{section.path}: bits per byte needs a fast tokenizer, which says where each token "
            f"ends in the text; {type(tokenizer).__name__} does not."
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    ends = [end for _, end in offsets]
    size = section.window_tokens
    total = len(ids) // size
    if total < 2:
        raise ObjectiveError(
            f"{section.path}: the text has {len(ids)} tokens, fewer than two windows of {size}. "
            "Give more text, or lower `window_tokens`."
        )
    count = min(total, section.max_items)
    starts = ((index * total // count) * size for index in range(count))
    return tuple(
        Window(
            start // size,
            tuple(ids[start : start + size]),
            len(text[ends[start] : ends[start + size - 1]].encode()),
            offsets[start][0],
            text[offsets[start][0] : ends[start + size - 1]],
        )
        for start in starts
    )


def _opening(tokenizer: Any) -> list[int]:
    """The BOS token, if the tokenizer adds it before a text."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and bos in encode(tokenizer, "") else []
