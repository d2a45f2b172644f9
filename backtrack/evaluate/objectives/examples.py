"""Prompts with known completions: exact match, choice, or likelihood; and prompts to refuse.

Prompt and completion are encoded as one text (see `encode_continuations`), the same at every
point. A sequence longer than the model's context is cut from its left. Nothing is appended to a
completion: the end-of-text token is not scored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from backtrack.errors import BacktrackError, ObjectiveError
from backtrack.evaluate.encoding import encode, encode_continuations, user_turn
from backtrack.evaluate.language_model import CompletionLimits, Sampling
from backtrack.evaluate.objectives.documents import (
    load_records,
    render,
    render_field,
    shared_field,
)
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
from backtrack.records.answers import Answer, Question

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backtrack.evaluate.language_model import LanguageModel, ScoredSequence
    from backtrack.recipe import ExamplesObjective, RefusalObjective

NUM_ESTIMATED = 100
"""Documents, from the first, by which the tokens of an item are estimated."""


@dataclass(frozen=True)
class Example:
    """One prompt.

    Attributes:
        prompt: As the model reads it, after the chat template if there is one.
        completion: The answer.
        choices: For `choice`: the completions to choose from; `completion` is one of them.
    """

    prompt: str
    completion: str
    choices: tuple[str, ...] = ()


class ExampleScores(Objective):
    """One score per prompt: exact match, the right choice, or nats per token of the completion.

    `exact_match` is 1 if the greedy completion, cut before the first stop text and stripped,
    equals the stripped answer; with `sampling` it is the share of sampled completions that do.
    `choice` is 1 if the answer has the highest log-likelihood of the choices, summed over tokens;
    of equals the first counts. A choice without leading space takes the completion's. `nll` is
    the completion's negative log-likelihood per token.
    """

    @override
    def __init__(self, section: ExamplesObjective, tokenizer: Any) -> None:
        self._section = section
        self._tokenizer = tokenizer
        self._encoded = _EncodedOnce()
        records = load_records(section.path, section.subset, section.split)
        name = section.name or section.default_name
        self.item_ids = name_items(name, _keys(records))
        self._examples = tuple(
            self._example(record, item_id)
            for record, item_id in zip(records, self.item_ids, strict=True)
        )
        if section.cluster is None:
            self.shared_field = shared_field(records)
        else:
            self.clusters = cluster_items(
                self.item_ids,
                [
                    render_field(section.cluster, record, item_id)
                    for record, item_id in zip(records, self.item_ids, strict=True)
                ],
            )
        self.info = section.info(self._fingerprint())

    @override
    def measure(self, model: LanguageModel, item_ids: Sequence[str]) -> tuple[float, ...]:
        if not item_ids:
            return ()
        asked = positions(item_ids, self.item_ids, self.info.name)
        scores = self._score(model, sorted(asked))
        return finite(in_order(asked, scores), item_ids, self.info.name)

    @override
    def texts(self) -> tuple[str, ...]:
        """Each prompt, without a chat template."""
        section = self._section
        records = load_records(section.path, section.subset, section.split)
        pairs = zip(records, self.item_ids, strict=True)
        return tuple(render(section.prompt, record, item_id) for record, item_id in pairs)

    @override
    def questions(self) -> tuple[Question, ...]:
        pairs = zip(self.texts(), self._examples, strict=True)
        return tuple(
            Question(prompt=text, gold=e.completion.strip(), choices=e.choices)
            for text, e in pairs
        )

    @override
    def prompts(self) -> tuple[str, ...]:
        return tuple(example.prompt for example in self._examples)

    @override
    @classmethod
    def tokens_per_item(
        cls, section: ExamplesObjective, num_tokens: Callable[[str], float]
    ) -> float | None:
        """Mean over the first documents."""
        if not Path(section.path).exists():
            return None
        try:
            records = load_records(section.path, section.subset, section.split)[:NUM_ESTIMATED]
            prompts = [render(section.prompt, r, section.path) for r in records]
            completions = [_scored_texts(section, r) for r in records]
        except BacktrackError:
            return None
        read = sum(map(num_tokens, prompts)) / len(prompts)
        if section.writes_completions:
            return read + section.max_new_tokens
        num_scored = sum(sum(map(num_tokens, texts)) for texts in completions) / len(completions)
        num_texts = sum(map(len, completions)) / len(completions)
        return num_texts * read + num_scored

    @property
    def _ways(self) -> Mapping[str, Callable[[LanguageModel, Sequence[int]], list[float]]]:
        """What scores items, by name; items are given by ascending index."""
        return {"exact_match": self._completed, "choice": self._choice, "nll": self._nll}

    @property
    def _is_templated(self) -> bool:
        """Whether prompts come from a chat template."""
        return self._section.apply_chat_template

    def _example(self, record: Mapping[str, Any], item_id: str) -> Example:
        """What one record asks."""
        return _example(self._section, record, self._tokenizer, item_id)

    def _score(self, model: LanguageModel, indices: Sequence[int]) -> list[float]:
        """Scores of items, given by ascending index."""
        return self._ways[self._section.score](model, indices)

    def _completed(self, model: LanguageModel, indices: Sequence[int]) -> list[float]:
        prompts = [self._encoded.get(model.tokenizer, i, self._prompt) for i in indices]
        empty = next((i for i, ids in zip(indices, prompts, strict=True) if not ids), None)
        if empty is not None:
            raise ObjectiveError(
                f"{self.item_ids[empty]}: the prompt is empty and the tokenizer opens with no "
                "token, so there is nothing to complete. Give the item a prompt."
            )
        limits = CompletionLimits(self._section.max_new_tokens, self._section.stop)
        section = self._section.sampling
        sampling = None if section is None else Sampling(**section.model_dump())
        completions = model.complete(prompts, limits, sampling)
        for texts, i in zip(completions, indices, strict=True):
            model.note(self.item_ids[i], Answer(texts=tuple(texts)))
        return [
            fmean(self._is_counted(text, i) for text in texts)
            for texts, i in zip(completions, indices, strict=True)
        ]

    def _is_counted(self, text: str, index: int) -> bool:
        """Whether a completion counts as 1."""
        return text.strip() == self._examples[index].completion.strip()

    def _choice(self, model: LanguageModel, indices: Sequence[int]) -> list[float]:
        scores = []
        for index, answer in zip(indices, self._likelihoods(model, indices), strict=True):
            likeliest = self._examples[index].choices[answer.choice or 0]
            scores.append(float(likeliest == self._examples[index].completion))
        return scores

    def _likelihoods(self, model: LanguageModel, indices: Sequence[int]) -> list[Answer]:
        """The log-likelihoods of each item's choices, which are noted."""
        choices = [self._encoded.get(model.tokenizer, i, self._scored) for i in indices]
        found = iter(model.score([sequence for each in choices for sequence in each]))
        answers = []
        for index, sequences in zip(indices, choices, strict=True):
            answer = Answer(likelihoods=tuple(next(found).log_likelihood for _ in sequences))
            model.note(self.item_ids[index], answer)
            answers.append(answer)
        return answers

    def _nll(self, model: LanguageModel, indices: Sequence[int]) -> list[float]:
        scored = [self._encoded.get(model.tokenizer, i, self._scored)[0] for i in indices]
        sequences = [model.fitting(sequence) for sequence in scored]
        likelihoods = model.score(sequences)
        for index, likelihood in zip(indices, likelihoods, strict=True):
            said = Answer(likelihoods=(likelihood.log_likelihood,))
            model.note(self.item_ids[index], said)
        return [
            -likelihood.log_likelihood / sequence.num_scored
            for likelihood, sequence in zip(likelihoods, sequences, strict=True)
        ]

    def _prompt(self, tokenizer: Any, index: int) -> list[int]:
        prompt = self._examples[index].prompt
        return encode(tokenizer, prompt, is_templated=self._is_templated)

    def _scored(self, tokenizer: Any, index: int) -> list[ScoredSequence]:
        example = self._examples[index]
        sequences = encode_continuations(
            tokenizer,
            example.prompt,
            example.choices or (example.completion,),
            is_templated=self._is_templated,
        )
        if min(sequence.num_scored for sequence in sequences) < 1:
            raise ObjectiveError(
                f"{self.item_ids[index]}: the tokenizer sees no difference between the prompt and "
                "the prompt with its completion, so no token can be scored. Change the formats."
            )
        return sequences

    def _fingerprint(self) -> str:
        decides = self._section.model_dump(
            include={"score", "patterns", "max_new_tokens", "stop", "apply_chat_template"}
        )
        if self._section.sampling is not None:
            decides["sampling"] = self._section.sampling.model_dump()
        documents = [[e.prompt, e.completion, e.choices] for e in self._examples]
        fingerprint = digest(self._section.kind, decides, self.item_ids, documents)
        return with_clusters(fingerprint, self.clusters)


class RefusalScores(ExampleScores):
    """One score per prompt: the share of completions in which a pattern is found.

    Completions are searched whole, without white space around them, so that `^` is their start.
    """

    _section: RefusalObjective  # type: ignore[assignment]

    @override
    def _is_counted(self, text: str, index: int) -> bool:
        return any(re.search(pattern, text.strip()) for pattern in self._section.patterns)

    @override
    def _example(self, record: Mapping[str, Any], item_id: str) -> Example:
        return Example(_prompt_of(self._section, record, self._tokenizer, item_id), "")

    @override
    def _score(self, model: LanguageModel, indices: Sequence[int]) -> list[float]:
        return self._completed(model, indices)


class _EncodedOnce:
    """What was encoded of each item, kept from point to point while the tokenizer is the same."""

    def __init__(self) -> None:
        self._tokenizer: Any = None
        self._encoded: dict[int, Any] = {}

    def get(self, tokenizer: Any, index: int, encode_item: Callable[[Any, int], Any]) -> Any:
        """What `encode_item(tokenizer, index)` gives, computed once."""
        if tokenizer is not self._tokenizer:
            self._tokenizer, self._encoded = tokenizer, {}
        if index not in self._encoded:
            self._encoded[index] = encode_item(tokenizer, index)
        return self._encoded[index]


def _keys(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The records' own ids if each has a distinct one, else their indices."""
    ids = [str(record.get("id", "")) for record in records]
    is_usable = all(ids) and len(set(ids)) == len(ids)
    return ids if is_usable else [str(index) for index in range(len(records))]


def _scored_texts(section: ExamplesObjective, record: Mapping[str, Any]) -> list[str]:
    """The texts whose likelihood is taken for one item."""
    if section.writes_completions:
        return []
    if section.score == "choice":
        return [str(choice) for choice in record[section.choices]]
    return [render(section.completion, record, section.path)]


def _prompt_of(
    section: ExamplesObjective | RefusalObjective,
    record: Mapping[str, Any],
    tokenizer: Any,
    item_id: str,
) -> str:
    """A record's prompt, as the model reads it."""
    prompt = render(section.prompt, record, item_id)
    return user_turn(tokenizer, prompt) if section.apply_chat_template else prompt


def _example(
    section: ExamplesObjective, record: Mapping[str, Any], tokenizer: Any, item_id: str
) -> Example:
    completion = render(section.completion, record, item_id)
    if not completion.strip():
        raise ObjectiveError(f"{item_id}: the completion is empty, so there is nothing to score.")
    prompt = _prompt_of(section, record, tokenizer, item_id)
    if section.score != "choice":
        return Example(prompt, completion)
    return _with_choices(prompt, completion, record.get(section.choices), section, item_id)


def _with_choices(
    prompt: str, completion: str, listed: object, section: ExamplesObjective, item_id: str
) -> Example:
    if not isinstance(listed, list) or len(listed) < 2:
        raise ObjectiveError(
            f"{item_id}: the field {section.choices!r} must list two or more choices, "
            f"found {listed!r}."
        )
    space = completion[: len(completion) - len(completion.lstrip())]
    choices = tuple(c if c[:1].isspace() else space + c for c in map(str, listed))
    answers = [choice for choice in choices if choice.strip() == completion.strip()]
    if len(answers) != 1 or not all(choice.strip() for choice in choices):
        raise ObjectiveError(
            f"{item_id}: the answer {completion!r} must be exactly one of the choices, and none "
            f"may be empty; found {listed!r}."
        )
    return Example(prompt, answers[0], choices)
