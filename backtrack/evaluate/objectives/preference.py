"""Preference pairs: is the chosen answer likelier than the rejected one, and by how much?

Likelihoods are summed over an answer's tokens, as in the loss of DPO (Rafailov et al., Direct
preference optimization, 2023). There a pair's implicit reward margin is `beta` times what `margin`
gains over the reference model, which is the base: paired differences from the base are that,
without a second model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from backtrack.errors import BacktrackError, ObjectiveError
from backtrack.evaluate.encoding import user_turn
from backtrack.evaluate.objectives.documents import load_records, render
from backtrack.evaluate.objectives.examples import NUM_ESTIMATED, Example, ExampleScores
from backtrack.evaluate.objectives.items import digest, with_clusters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backtrack.evaluate.language_model import LanguageModel
    from backtrack.recipe import PreferenceObjective

    Turns = list[dict[str, Any]]

_REJECTED, _CHOSEN = 0, 1
"""Places of both answers among an example's choices; where both are as likely, the first counts
as the likelier."""


class PreferenceScores(ExampleScores):
    """One score per pair: 1 if the chosen answer is the likelier, or the margin in nats."""

    _section: PreferenceObjective  # type: ignore[assignment]
    _is_chat = False

    @property
    @override
    def _is_templated(self) -> bool:
        return self._is_chat or self._section.apply_chat_template

    @property
    @override
    def _ways(self) -> Mapping[str, Callable[[LanguageModel, Sequence[int]], list[float]]]:
        return {"accuracy": self._choice, "margin": self._margin}

    @override
    def _example(self, record: Mapping[str, Any], item_id: str) -> Example:
        prompt, chosen, rejected = self._texts_of(record, item_id)
        if not chosen.strip() or not rejected.strip() or chosen == rejected:
            raise ObjectiveError(
                f"{item_id}: a pair is two different answers, found {chosen!r} and {rejected!r}."
            )
        return Example(prompt, chosen, (rejected, chosen))

    @override
    def texts(self) -> tuple[str, ...]:
        return self.prompts()

    @override
    @classmethod
    def tokens_per_item(cls, section: Any, num_tokens: Callable[[str], float]) -> float | None:
        """Mean over the first pairs, each of two sequences; None for turns of a chat."""
        if not Path(section.path).exists():
            return None
        try:
            records = load_records(section.path, section.subset, section.split)[:NUM_ESTIMATED]
            texts = [_split(section, record, section.path) for record in records]
        except BacktrackError:
            return None
        totals = [2 * num_tokens(p) + num_tokens(c) + num_tokens(r) for p, c, r in texts]
        return sum(totals) / len(totals)

    def _margin(self, model: LanguageModel, indices: Sequence[int]) -> list[float]:
        return [
            answer.likelihoods[_CHOSEN] - answer.likelihoods[_REJECTED]
            for answer in self._likelihoods(model, indices)
        ]

    def _texts_of(self, record: Mapping[str, Any], item_id: str) -> tuple[str, str, str]:
        """Prompt, chosen and rejected answer, as the model reads them."""
        if isinstance(record.get("chosen"), list):
            return self._of_turns(record, item_id)
        prompt, chosen, rejected = _split(self._section, record, item_id)
        if self._section.apply_chat_template:
            prompt = user_turn(self._tokenizer, prompt)
        return prompt, chosen, rejected

    def _of_turns(self, record: Mapping[str, Any], item_id: str) -> tuple[str, str, str]:
        """Render a chat; its prompt is the turns before both answers."""
        self._is_chat = True
        turns = [list(record.get(key) or ()) for key in ("prompt", "chosen", "rejected")]
        if not turns[0]:
            both = zip(turns[1], turns[2], strict=False)
            num = next((i for i, pair in enumerate(both) if pair[0] != pair[1]), 0)
            turns = [turns[1][:num], turns[1][num:], turns[2][num:]]
        if not all(turns):
            raise ObjectiveError(
                f"{item_id}: a chat needs turns before its answers, and two different answers."
            )
        prompt = self._render(turns[0], item_id, add_generation_prompt=True)
        whole = [self._render([*turns[0], *answer], item_id) for answer in turns[1:]]
        if not all(text.startswith(prompt) for text in whole):
            raise ObjectiveError(
                f"{item_id}: the chat template changes the prompt when an answer follows it, so "
                "the answers cannot be scored alone."
            )
        return prompt, whole[0][len(prompt) :], whole[1][len(prompt) :]

    def _render(self, turns: Turns, item_id: str, **options: Any) -> str:
        if self._tokenizer.chat_template is None:
            raise ObjectiveError(
                f"{item_id} is a chat, but the tokenizer has no chat template. Use the tokenizer "
                "of a chat model, or pairs of texts."
            )
        try:
            text: str = self._tokenizer.apply_chat_template(turns, tokenize=False, **options)
        except Exception as error:  # a template may raise anything
            raise ObjectiveError(
                f"{item_id}: the chat template refuses it: {' '.join(str(error).split())}"
            ) from error
        return text

    @override
    def _fingerprint(self) -> str:
        decides = self._section.model_dump(include={"score", "apply_chat_template"})
        documents = [[e.prompt, e.choices] for e in self._examples]
        fingerprint = digest("preference", decides, self.item_ids, documents)
        return with_clusters(fingerprint, self.clusters)


def _split(
    section: PreferenceObjective, record: Mapping[str, Any], where: str
) -> tuple[str, str, str]:
    """Prompt, chosen and rejected text; without a prompt, it is what both begin with."""
    chosen, rejected = (render(f, record, where) for f in (section.chosen, section.rejected))
    if section.prompt != "{prompt}" or "prompt" in record:
        return render(section.prompt, record, where), chosen, rejected
    both = enumerate(zip(chosen, rejected, strict=False))
    num_same = next(
        (i for i, (one, other) in both if one != other), min(len(chosen), len(rejected))
    )
    prompt = chosen[: max(chosen.rfind(" ", 0, num_same), 0)]  # no word is divided
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]
