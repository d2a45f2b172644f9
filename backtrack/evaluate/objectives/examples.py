"""Prompts with known completions: exact match, choice by likelihood, or likelihood itself.

Prompt and completion are encoded as one text (see `forward.continuations`), the same at every
point. A sequence longer than the model's context is cut from its left. Nothing is appended to a
completion: the end-of-text token is not scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from backtrack.errors import ObjectiveError
from backtrack.evaluate.forward import (
    Greedy,
    complete,
    continuations,
    encode,
    evaluating,
    fitting,
    losses,
    sample,
)
from backtrack.evaluate.objectives.documents import load_records, render
from backtrack.evaluate.objectives.items import digest, finite, in_order, positions
from backtrack.records import ObjectiveInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backtrack.recipe import ExamplesObjective


@dataclass(frozen=True)
class Example:
    """One prompt.

    Attributes:
        prompt: As the model reads it, after the chat template where there is one.
        completion: The answer.
        choices: For `choice`: what to choose from; `completion` is one of them.
    """

    prompt: str
    completion: str
    choices: tuple[str, ...] = ()


class ExampleScores:
    """One score a prompt: exact match, the right choice, or nats a token of the completion.

    `exact_match` is 1 where the greedy completion, cut before the first stop string and stripped,
    equals the stripped answer; with `sampling` it is the share of sampled completions that do.
    `choice` is 1 where the answer has the highest log-likelihood of the choices, summed over
    tokens; the first of equals counts. A choice without leading space of its own takes the
    completion's. `nll` is the completion's negative log-likelihood a token.
    """

    def __init__(self, settings: ExamplesObjective, tokenizer: Any, batch_size: int) -> None:
        self._settings = settings
        self._batch_size = batch_size
        self._encoded = _Encoded()
        records = load_records(settings.path, settings.subset, settings.split)
        name = settings.name or Path(settings.path).stem
        self.item_ids = tuple(f"{name}/{key}" for key in _keys(records))
        self._examples = tuple(
            _example(settings, record, tokenizer, item_id)
            for record, item_id in zip(records, self.item_ids, strict=True)
        )
        is_loss = settings.score == "nll"
        self.info = ObjectiveInfo(
            name=name,
            role=settings.role,
            kind="examples",
            direction="minimize" if is_loss else "maximize",
            unit="nats a token" if is_loss else "fraction",
            weight=settings.weight,
            fingerprint=self._fingerprint(),
        )

    def measure(self, model: Any, tokenizer: Any, item_ids: Sequence[str]) -> tuple[float, ...]:
        """One score an item, in the order of `item_ids`; `nll` is in nats a token.

        Raises:
            ObjectiveError: An item is unknown, has no token to score, or its score is not finite.
        """
        if not item_ids:
            return ()
        asked = positions(item_ids, self.item_ids, self.info.name)
        with evaluating(model, self.info.name):
            match self._settings.score:
                case "exact_match":
                    scores = self._exact(model, tokenizer, sorted(asked))
                case "choice":
                    scores = self._choice(model, tokenizer, sorted(asked))
                case "nll":
                    scores = self._nll(model, tokenizer, sorted(asked))
        return finite(in_order(asked, scores), item_ids, self.info.name)

    def texts(self) -> tuple[str, ...]:
        """Each prompt, without a chat template."""
        settings = self._settings
        records = load_records(settings.path, settings.subset, settings.split)
        pairs = zip(records, self.item_ids, strict=True)
        return tuple(render(settings.prompt, record, item_id) for record, item_id in pairs)

    def _exact(self, model: Any, tokenizer: Any, places: Sequence[int]) -> list[float]:
        examples = [self._examples[place] for place in places]
        prompts = [self._encoded.of(tokenizer, place, self._prompt) for place in places]
        empty = next((p for p, ids in zip(places, prompts, strict=True) if not ids), None)
        if empty is not None:
            raise ObjectiveError(
                f"{self.item_ids[empty]}: the prompt is empty and the tokenizer opens with no "
                "token, so there is nothing to complete. Give the item a prompt."
            )
        ends = Greedy(self._settings.max_new_tokens, self._settings.stop)
        sampling = self._settings.sampling
        if sampling is not None:
            drawn = sample(model, tokenizer, prompts, ends, sampling)
        else:
            greedy = complete(model, tokenizer, prompts, ends, self._batch_size)
            drawn = [[text] for text in greedy]
        return [
            fmean(text.strip() == example.completion.strip() for text in texts)
            for texts, example in zip(drawn, examples, strict=True)
        ]

    def _choice(self, model: Any, tokenizer: Any, places: Sequence[int]) -> list[float]:
        rivals = [self._encoded.of(tokenizer, place, self._scored) for place in places]
        found = iter(losses(model, [s for group in rivals for s in group], self._batch_size))
        scores = []
        for place, group in zip(places, rivals, strict=True):
            values = [next(found) for _ in group]
            picked = self._examples[place].choices[values.index(min(values))]
            scores.append(float(picked == self._examples[place].completion))
        return scores

    def _nll(self, model: Any, tokenizer: Any, places: Sequence[int]) -> list[float]:
        scored = [self._encoded.of(tokenizer, place, self._scored)[0] for place in places]
        sequences = [fitting(sequence, model) for sequence in scored]
        found = losses(model, sequences, self._batch_size)
        return [
            loss / sequence.num_tokens for loss, sequence in zip(found, sequences, strict=True)
        ]

    def _prompt(self, tokenizer: Any, place: int) -> list[int]:
        is_templated = self._settings.apply_chat_template
        return encode(tokenizer, self._examples[place].prompt, is_templated=is_templated)

    def _scored(self, tokenizer: Any, place: int) -> Any:
        example = self._examples[place]
        found = continuations(
            tokenizer,
            example.prompt,
            example.choices or (example.completion,),
            is_templated=self._settings.apply_chat_template,
        )
        if min(sequence.num_tokens for sequence in found) < 1:
            raise ObjectiveError(
                f"{self.item_ids[place]}: the tokenizer sees no difference between the prompt and "
                "the prompt with its completion, so no token can be scored. Change the formats."
            )
        return found

    def _fingerprint(self) -> str:
        decides = self._settings.model_dump(
            include={"score", "max_new_tokens", "stop", "apply_chat_template"}
        )
        if self._settings.sampling is not None:
            decides["sampling"] = self._settings.sampling.model_dump()
        documents = [[e.prompt, e.completion, e.choices] for e in self._examples]
        return digest("examples", decides, self._batch_size, self.item_ids, documents)


class _Encoded:
    """What was encoded of each item, kept from point to point while the tokenizer is the same."""

    def __init__(self) -> None:
        self._tokenizer: Any = None
        self._found: dict[int, Any] = {}

    def of(self, tokenizer: Any, place: int, make: Callable[[Any, int], Any]) -> Any:
        """Of one item; `make` takes the tokenizer and the item's place."""
        if tokenizer is not self._tokenizer:
            self._tokenizer, self._found = tokenizer, {}
        if place not in self._found:
            self._found[place] = make(tokenizer, place)
        return self._found[place]


def _keys(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The records' own ids where each has a distinct one, else their indices.

    Ids with a slash are not taken: what stands before it would become a stratum of its own.
    """
    own = [str(record.get("id", "")) for record in records]
    is_usable = all(own) and len(set(own)) == len(own) and not any("/" in key for key in own)
    return own if is_usable else [str(index) for index in range(len(records))]


def _example(
    settings: ExamplesObjective, record: Mapping[str, Any], tokenizer: Any, item_id: str
) -> Example:
    prompt = render(settings.prompt, record, item_id)
    completion = render(settings.completion, record, item_id)
    if not completion.strip():
        raise ObjectiveError(f"{item_id}: the completion is empty, so there is nothing to score.")
    if settings.apply_chat_template:
        prompt = _as_turn(tokenizer, prompt)
    if settings.score != "choice":
        return Example(prompt, completion)
    return _with_choices(prompt, completion, record.get(settings.choices), settings, item_id)


def _as_turn(tokenizer: Any, prompt: str) -> str:
    if tokenizer.chat_template is None:
        raise ObjectiveError(
            "`apply_chat_template` is set, but the tokenizer has no chat template. "
            "Leave it out, or use the tokenizer of a chat model."
        )
    turn = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return text


def _with_choices(
    prompt: str, completion: str, listed: object, settings: ExamplesObjective, item_id: str
) -> Example:
    if not isinstance(listed, list) or len(listed) < 2:
        raise ObjectiveError(
            f"{item_id}: the field {settings.choices!r} must list two or more choices, "
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
