"""How far next-token probabilities are from the base's, on prompts that need no label.

The score of a prompt is KL(base || model) over the whole vocabulary, the mean over the prompt's
positions, in nats a token: what a token that the base writes costs more under the model. It is 0
at the base. One forward pass reads all positions, so it varies less than a score of answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import override

from backtrack.errors import BacktrackError, ObjectiveError
from backtrack.evaluate.encoding import encode, user_turn
from backtrack.evaluate.objectives.documents import JSONL_SUFFIXES, load_records, render_field
from backtrack.evaluate.objectives.items import (
    digest,
    finite,
    in_order,
    name_items,
    positions,
    with_clusters,
)
from backtrack.evaluate.objectives.objective import Objective
from backtrack.records.answers import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backtrack.evaluate.language_model import LanguageModel
    from backtrack.recipe import DivergenceObjective

NUM_ESTIMATED = 100
"""Prompts, from the first, by which the tokens of an item are estimated."""


class _Prompt(NamedTuple):
    """A prompt as the model reads it, and whether it comes from a chat template."""

    text: str
    is_templated: bool


class DivergenceFromBase(Objective):
    """One score a prompt: KL(base || model), mean over its positions; lower is better."""

    @override
    def __init__(
        self, section: DivergenceObjective, tokenizer: Any, lenders: Sequence[Objective] = ()
    ) -> None:
        """Read the prompts, or take those of other objectives.

        Args:
            section: Of the recipe.
            tokenizer: The model's, with its chat template.
            lenders: Objectives whose prompts are read if the section names no file.
        """
        self._tokenizer = tokenizer
        self._own: tuple[str, ...] = ()
        name = section.name or section.default_name
        if section.path is None:
            self._prompts = self._borrow(name, lenders)
        else:
            self._own = _texts(section)
            self.item_ids = name_items(name, [str(index) for index in range(len(self._own))])
            is_turn = section.apply_chat_template
            turns = [user_turn(tokenizer, text) if is_turn else text for text in self._own]
            self._prompts = [_Prompt(text, is_turn) for text in turns]
        fingerprint = digest("divergence", self.item_ids, self._prompts)
        self.info = section.info(with_clusters(fingerprint, self.clusters))

    @override
    def measure(self, model: LanguageModel, item_ids: Sequence[str]) -> tuple[float, ...]:
        if not item_ids:
            return ()
        asked = positions(item_ids, self.item_ids, self.info.name)
        found = model.divergences([self._encoded(index) for index in sorted(asked)])
        for item_id in item_ids:
            model.note(item_id, Answer())  # nothing is said, which is not what was not kept
        return finite(in_order(asked, found), item_ids, self.info.name)

    @override
    def texts(self) -> tuple[str, ...]:
        """Prompts of its own; borrowed ones are texts of the objectives that lend them."""
        return self._own

    @override
    @classmethod
    def tokens_per_item(
        cls, section: DivergenceObjective, num_tokens: Callable[[str], float]
    ) -> float | None:
        """Mean over the first prompts of a file."""
        if section.path is None or not Path(section.path).exists():
            return None
        try:
            texts = _texts(section)[:NUM_ESTIMATED]
        except BacktrackError:
            return None
        return sum(map(num_tokens, texts)) / len(texts)

    def _borrow(self, name: str, lenders: Sequence[Objective]) -> list[_Prompt]:
        """Take the items of other objectives, and return their prompts."""
        lent, clusters, prompts = {}, {}, list[_Prompt]()
        for lender in lenders:
            items = zip(lender.item_ids, lender.prompts(), lender.texts(), strict=False)
            for item_id, prompt, text in items:
                own = f"{name}/{item_id}"
                lent[own] = lender.info.name, item_id
                prompts.append(_Prompt(prompt, prompt != text))
                if item_id in lender.clusters:
                    clusters[own] = f"{name}/{lender.clusters[item_id]}"
        if not lent:
            raise ObjectiveError(
                f"{name}: no other objective of `role: general` has prompts to read. Add one, or "
                "name a file of prompts with `path`."
            )
        self.item_ids, self.lent, self.clusters = tuple(lent), lent, clusters
        return prompts

    def _encoded(self, index: int) -> list[int]:
        prompt = self._prompts[index]
        ids = encode(self._tokenizer, prompt.text, is_templated=prompt.is_templated)
        if not ids:
            raise ObjectiveError(
                f"{self.item_ids[index]}: the prompt is empty and the tokenizer opens with no "
                "token, so there is nothing to read. Leave it out."
            )
        return ids


def _texts(section: DivergenceObjective) -> tuple[str, ...]:
    """Prompts of the file or data set that a section names."""
    assert section.path is not None
    path = Path(section.path)
    if path.is_file() and path.suffix not in JSONL_SUFFIXES:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ObjectiveError(f"{path} cannot be read as UTF-8 text: {error}.") from error
        return tuple(line for line in lines if line.strip())
    records = load_records(section.path, section.subset, section.split)
    return tuple(
        render_field(section.prompt, record, f"{path} record {index}")
        for index, record in enumerate(records)
    )
