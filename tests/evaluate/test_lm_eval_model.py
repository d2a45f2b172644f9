"""lm-eval's own `hf` model and this package's view of one: the same answers to every request."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from backtrack.errors import ObjectiveError
from backtrack.evaluate.encoding import encode
from backtrack.evaluate.language_model import CompletionLimits, Sampling
from backtrack.evaluate.objectives.lm_eval_model import AskedByLmEval
from tests.evaluate.asking import as_model
from tests.evaluate.conftest import CONTEXT

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = ["the", "cat", "sat", "on", "mat,", "a", "dog", "ran", "to", "hat", "<s>", "é", "  "]


def texts(count: int, longest: int = 30) -> list[str]:
    rng = random.Random(3)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(count)]


def requests(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=each, idx=0, metadata=("task", i, 1))
        for i, each in enumerate(arguments)
    ]


@pytest.fixture(params=[True, False], ids=["bos", "no bos"])
def both(
    request: pytest.FixtureRequest, model: Any, fresh_tokenizer: Callable[..., Any]
) -> tuple[Any, Any]:
    """The same model as lm-eval wraps it, and as it is wrapped here."""
    tokenizer = fresh_tokenizer(has_bos=request.param)
    stock = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=3)
    return stock, AskedByLmEval(as_model(model, tokenizer, 3), None)


def test_likelihoods_are_those_of_lm_evals_own_model(both: tuple[Any, Any]) -> None:
    stock, ours = both
    contexts = ["", "the cat ", *texts(12), "the cat " * CONTEXT]
    pairs = [(context, f" {text}") for context in contexts for text in texts(3, 4)]
    asked = requests("loglikelihood", pairs)
    expected = stock.loglikelihood(asked, disable_tqdm=True)
    found = ours.loglikelihood(asked, disable_tqdm=True)
    assert [f[0] for f in found] == pytest.approx([e[0] for e in expected], rel=1e-5)
    assert [f[1] for f in found] == [e[1] for e in expected]
    assert len({f[0] for f in found}) > 30


def test_rolling_likelihoods_are_too_also_past_the_context(both: tuple[Any, Any]) -> None:
    stock, ours = both
    asked = requests("loglikelihood_rolling", [(text,) for text in texts(4, 900)])
    expected = stock.loglikelihood_rolling(asked, disable_tqdm=True)
    assert ours.loglikelihood_rolling(asked, disable_tqdm=True) == pytest.approx(
        expected, rel=1e-5
    )


def test_completions_are_too(both: tuple[Any, Any]) -> None:
    stock, ours = both
    ways: list[dict[str, Any]] = [
        {"until": ["\n"], "max_gen_toks": 9},
        {"until": ["a", " the"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 20},
        {"do_sample": False, "repetition_penalty": 1.7, "max_gen_toks": 20},
        {"until": [], "max_new_tokens": 5, "num_beams": 1},
        {"max_gen_toks": 7},
    ]
    long = "cat " * CONTEXT
    asked = requests("generate_until", [(t, way) for t in [*texts(6), long] for way in ways])
    expected = stock.generate_until(asked, disable_tqdm=True)
    assert ours.generate_until(asked, disable_tqdm=True) == expected
    assert len(set(expected)) > 10


@pytest.mark.parametrize("opening", ["", "the cat sat on the mat, the dog ran "])
def test_a_penalty_is_of_what_was_read_and_written(
    model: Any, tokenizer: Any, opening: str
) -> None:
    prompts = [encode(tokenizer, opening + text) for text in texts(5, 6)]
    limits = CompletionLimits(16, (), 1.6)
    asked = as_model(model, tokenizer, 3)
    found = asked.complete(prompts, limits)
    alone = [asked.complete([ids], limits)[0] for ids in prompts]
    assert found == alone != asked.complete(prompts, limits._replace(repetition_penalty=1.0))
    for ids, (text,) in zip(prompts, found, strict=True):
        stock = model.generate(
            torch.tensor([ids]), max_new_tokens=16, do_sample=False, repetition_penalty=1.6
        )
        assert text == tokenizer.decode(stock[0, len(ids) :], skip_special_tokens=True)


def test_what_has_ended_leaves_its_batch(successor: Any, tokenizer: Any) -> None:
    prompts = [encode(tokenizer, f"{letter} says {letter}") for letter in "xbcw"]
    asked = as_model(successor, tokenizer, 4)
    limits = CompletionLimits(20, ("z",))
    read = sum(map(len, prompts))
    found = asked.complete(prompts, limits)
    assert found == [["y"], ["cdefghijklmnopqrstuv"], ["defghijklmnopqrstuvw"], ["xy"]]
    # Two end after two and three tokens, and the other two write on in a batch of two.
    assert asked.num_tokens == read + 4 * 2 + 2 * 17


def test_a_task_that_samples_gets_the_same_answers_every_time(both: tuple[Any, Any]) -> None:
    _, ours = both
    sampled = {"do_sample": True, "temperature": 1.3, "max_gen_toks": 9}
    asked = requests("generate_until", [(text, sampled) for text in texts(4)])
    first = ours.generate_until(asked)
    assert AskedByLmEval(ours._language_model, None).generate_until(asked) == first
    greedy = requests("generate_until", [(text, {"max_gen_toks": 9}) for text in texts(4)])
    assert ours.generate_until(greedy) != first


def test_repeats_of_a_request_are_samples_of_their_own_whatever_else_is_asked(
    both: tuple[Any, Any],
) -> None:
    model = both[1]._language_model
    sampled = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 9}
    distinct = requests("generate_until", [(text, sampled) for text in texts(3)])
    twin = requests("generate_until", [(texts(1)[0], sampled)])
    alone = AskedByLmEval(model, None).generate_until(distinct)
    # As lm-eval clones a request of a task with `repeats: 4`.
    answers = AskedByLmEval(model, None).generate_until(
        [each for each in [*distinct, *twin] for _ in range(4)]
    )
    by_request = [answers[start : start + 4] for start in range(0, 16, 4)]
    assert all(len(set(samples)) == 4 for samples in by_request)
    assert [samples[0] for samples in by_request] == [*alone, alone[0]]
    assert by_request[3] == by_request[0]
    ours = AskedByLmEval(model, Sampling(2, temperature=1.5))
    both_numbers: list[str] = []
    for ours.number in range(2):
        both_numbers += ours.generate_until([distinct[0]] * 4)
    assert len(set(both_numbers)) == 8


def test_a_continuation_without_a_token_is_refused(both: tuple[Any, Any]) -> None:
    asked = requests("loglikelihood", [("the cat", "")])
    with pytest.raises(ObjectiveError, match="no token of its own"):
        both[1].loglikelihood(asked, disable_tqdm=True)


def test_each_number_gives_another_sample_and_the_model_is_asked_once(
    both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = both[1]._language_model
    calls: list[int] = []
    real = model.complete

    def counting(prompts: Any, *more: Any) -> Any:
        calls.append(len(prompts))
        return real(prompts, *more)

    monkeypatch.setattr(model, "complete", counting)
    ours = AskedByLmEval(model, Sampling(3, temperature=1.5))
    asked = requests("generate_until", [(text, {"max_gen_toks": 9}) for text in texts(4)])
    answers = []
    for ours.number in range(3):
        answers.append(tuple(ours.generate_until(asked)))
    assert len(set(answers)) == 3
    assert calls == [4]


def test_what_no_engine_offers_is_refused_by_name(both: tuple[Any, Any]) -> None:
    asked = requests("generate_until", [("the cat", {"num_beams": 4, "max_gen_toks": 3})])
    with pytest.raises(ObjectiveError, match="set 'num_beams' to 4, which is not supported"):
        both[1].generate_until(asked)


def test_a_stop_text_that_is_a_special_token_ends_a_completion(
    model: Any, fresh_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = fresh_tokenizer()
    prompts = texts(6)
    plain = AskedByLmEval(as_model(model, tokenizer), None)
    whole = plain.generate_until(
        requests("generate_until", [(text, {"until": [], "max_gen_toks": 20}) for text in prompts])
    )
    # A token of the answers becomes the one that closes a turn.
    closing = max(tokenizer.tokenize(whole[0])[1:], key=whole[0].count)
    tokenizer.add_special_tokens({"additional_special_tokens": [closing]})
    stopping = {"until": [closing], "max_gen_toks": 20}
    asked = requests("generate_until", [(text, stopping) for text in prompts])
    # In larger batches it goes on until all rows have stopped, and does not cut what follows.
    stock = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=1)
    found = AskedByLmEval(as_model(model, tokenizer), None).generate_until(asked)
    assert found == stock.generate_until(asked, disable_tqdm=True)
    assert len(found[0]) < len(whole[0])
