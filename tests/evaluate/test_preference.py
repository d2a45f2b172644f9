"""Pairs of answers: which is likelier and by how much, against sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backtrack.errors import ObjectiveError
from backtrack.evaluate.build import build_objectives
from tests.evaluate.asking import as_model
from tests.evaluate.conftest import make_tokenizer

PAIRS = [
    {"prompt": "the cat sat on", "chosen": " the mat", "rejected": " a dog"},
    {"prompt": "the dog", "chosen": " ran", "rejected": " ran to the hat"},
    {"prompt": "a", "chosen": "b c d", "rejected": "z"},
    {"prompt": "where is", "chosen": " it", "rejected": " the"},
]
TEMPLATE = (
    "{% for turn in messages %}[{{ turn.role }}]{{ turn.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def build(recipe_of, jsonl, tokenizer):
    """The preference objective over these records."""

    def first(records: list[dict[str, Any]], **settings: Any) -> Any:
        settings = {"kind": "preference", "path": jsonl(records), **settings}
        with_tokenizer = settings.pop("tokenizer", tokenizer)
        return build_objectives(recipe_of(settings, batch_size=4), with_tokenizer)[0]

    return first


@pytest.fixture
def chatty() -> Any:
    """A tokenizer with a chat template."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def log_likelihood(model: Any, tokenizer: Any, prompt: str, answer: str, **options: Any) -> float:
    """Of the answer's tokens, from a forward pass of this one sequence."""
    read, whole = (tokenizer(t, **options)["input_ids"] for t in (prompt, prompt + answer))
    assert whole[: len(read)] == read
    with torch.no_grad():
        table = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1)
    return sum(float(table[i - 1, whole[i]]) for i in range(len(read), len(whole)))


def test_a_margin_is_the_difference_of_both_sums_and_accuracy_its_sign(build, model, tokenizer):
    margin = build(PAIRS, score="margin", range=[-10, 10])
    accuracy = build(PAIRS)
    asked = as_model(model, tokenizer)
    expected = [
        log_likelihood(model, tokenizer, p["prompt"], p["chosen"])
        - log_likelihood(model, tokenizer, p["prompt"], p["rejected"])
        for p in PAIRS
    ]
    assert margin.measure(asked, margin.item_ids) == pytest.approx(expected, rel=1e-4)
    signs = tuple(float(value > 0) for value in expected)
    assert accuracy.measure(asked, accuracy.item_ids) == signs
    assert {0.0, 1.0} == set(signs)
    assert (accuracy.info.unit, margin.info.unit) == ("fraction", "nats an answer")
    assert accuracy.info.fingerprint != margin.info.fingerprint


def test_without_a_prompt_it_is_what_both_answers_begin_with(build, model, tokenizer):
    whole = [
        {key: pair["prompt"] + pair[key] for key in ("chosen", "rejected")} for pair in PAIRS[:2]
    ]
    given, implied = build(PAIRS[:2]), build(whole)
    asked = as_model(model, tokenizer)
    assert implied.prompts() == ("the cat sat on", "the dog")
    assert implied.measure(asked, implied.item_ids) == given.measure(asked, given.item_ids)


def test_turns_of_a_chat_are_rendered_and_their_answers_scored(build, model, chatty):
    turn = {"role": "user", "content": "the cat"}
    answers = {key: [{"role": "assistant", "content": text}]
               for key, text in (("chosen", " sat"), ("rejected", " ran"))}  # fmt: skip
    named = {"prompt": [turn], **answers}
    whole = {key: [turn, *answer] for key, answer in answers.items()}
    expected = log_likelihood(
        model, chatty, "[user]the cat[assistant]", " sat", add_special_tokens=False
    ) - log_likelihood(model, chatty, "[user]the cat[assistant]", " ran", add_special_tokens=False)
    for record in (named, whole):
        objective = build([record] * 2, score="margin", range=[-10, 10], tokenizer=chatty)
        assert objective.prompts() == ("[user]the cat[assistant]",) * 2
        found = objective.measure(as_model(model, chatty), objective.item_ids)
        assert found == pytest.approx((expected, expected), rel=1e-4)


def test_what_is_no_pair_is_refused_by_item(build, chatty, tokenizer):
    same = [*PAIRS[:1], {"prompt": "a", "chosen": " b", "rejected": " b"}]
    with pytest.raises(ObjectiveError, match="/1: a pair is two different answers"):
        build(same)
    turns = [{"role": "user", "content": "a"}]
    with pytest.raises(ObjectiveError, match="/0: a chat needs turns before its answers"):
        build([{"chosen": turns, "rejected": turns}], tokenizer=chatty)
    with pytest.raises(ObjectiveError, match="/0 is a chat, but the tokenizer has no chat"):
        build([{"prompt": turns, "chosen": turns, "rejected": [*turns, *turns]}])


def test_tokens_of_a_pair_are_those_of_two_sequences(build, jsonl):
    objective = build(PAIRS)
    section = objective._section
    tokens = type(objective).tokens_per_item(section, len)
    lengths = [2 * len(p["prompt"]) + len(p["chosen"]) + len(p["rejected"]) for p in PAIRS]
    assert tokens == sum(lengths) / len(lengths)
