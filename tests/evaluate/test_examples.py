"""Scores of prompts with known completions, against sums done by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from backtrack.errors import ObjectiveError
from backtrack.evaluate.build import build_objectives
from backtrack.evaluate.encoding import encode, encode_continuations
from backtrack.evaluate.language_model import CompletionLimits, Sampling
from backtrack.evaluate.objectives.examples import _EncodedOnce
from tests.evaluate.asking import as_model

PAIRS = [
    {"prompt": "the cat sat on", "completion": " the mat"},
    {"prompt": "the dog", "completion": " ran"},
    {"prompt": "a", "completion": "b c d e f"},
    {"prompt": "the dog ran to the hat, the cat", "completion": " sat!"},
    {"prompt": "where is", "completion": " it"},
]


@pytest.fixture
def build(recipe_of, jsonl, tokenizer):
    """The examples objective over these records."""

    def first(records: list[dict[str, Any]], batch_size: int = 4, **settings: Any) -> Any:
        settings = {"kind": "examples", "path": jsonl(records), **settings}
        with_tokenizer = settings.pop("tokenizer", tokenizer)
        recipe = recipe_of(settings, batch_size=batch_size)
        return build_objectives(recipe, with_tokenizer)[0]

    return first


def log_probabilities(model: Any, ids: list[int]) -> list[float]:
    """Of each token but the first, from a forward pass of this one sequence."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    table = torch.log_softmax(logits, -1)
    return [float(table[place, token]) for place, token in enumerate(ids[1:])]


def test_nll_is_the_mean_over_the_completions_tokens(build, model, tokenizer):
    objective = build(PAIRS, score="nll")
    scores = objective.measure(as_model(model, tokenizer), objective.item_ids)
    for record, score in zip(PAIRS, scores, strict=True):
        prompt = tokenizer(record["prompt"])["input_ids"]
        whole = tokenizer(record["prompt"] + record["completion"])["input_ids"]
        assert whole[: len(prompt)] == prompt
        expected = log_probabilities(model, whole)[len(prompt) - 1 :]
        assert score == pytest.approx(-sum(expected) / len(expected), rel=1e-5)
    assert (objective.info.direction, objective.info.unit) == ("minimize", "nats a token")


def test_a_token_that_spans_the_boundary_counts_to_the_completion(tokenizer):
    prompt, completion = "see th", "e cat"
    read = encode(tokenizer, prompt)
    (scored,) = encode_continuations(tokenizer, prompt, [completion])
    assert scored.ids == tokenizer(prompt + completion)["input_ids"]
    assert scored.ids[: len(read)] != read
    assert tokenizer.decode(scored.ids[scored.first :]) == " the cat"


def test_rival_completions_are_given_the_same_tokens_to_read(tokenizer):
    one, other = encode_continuations(tokenizer, "see th", ["e cat", "! dog"])
    assert one.first == other.first
    assert one.ids[: one.first] == other.ids[: other.first]


def test_a_completion_without_prompt_is_read_after_the_opening_token(
    build, model, tokenizer, fresh_tokenizer
):
    records = [{"prompt": "", "completion": "the cat"}] * 2
    bare = fresh_tokenizer(has_bos=False)
    score = build(records, score="nll").measure(as_model(model, tokenizer), ["items/0"])
    ids = tokenizer("the cat")["input_ids"]
    expected = log_probabilities(model, ids)
    assert score[0] == pytest.approx(-sum(expected) / len(expected), rel=1e-5)
    assert encode_continuations(bare, "", ["the cat"])[0].ids == [bare.eos_token_id, *ids[1:]]


def test_choice_takes_the_highest_summed_likelihood(build, model, tokenizer):
    records = [
        {"prompt": f"the {animal}", "choices": choices, "completion": f" {choices[0]}"}
        for animal in ("cat", "dog", "hat", "mat", "x")
        for choices in (["sat on the mat", "ran"], ["ran", "sat"], ["b", "c", "d"])
    ]
    objective = build(records, score="choice")
    scores = objective.measure(as_model(model, tokenizer), objective.item_ids)
    for record, score in zip(records, scores, strict=True):
        start = len(tokenizer(record["prompt"])["input_ids"])
        sums = []
        for choice in record["choices"]:
            ids = tokenizer(f"{record['prompt']} {choice}")["input_ids"]
            sums.append(sum(log_probabilities(model, ids)[start - 1 :]))
        assert score == float(max(sums) == sums[0])
    assert 0 < sum(scores) < len(scores)
    assert (objective.info.direction, objective.info.unit) == ("maximize", "fraction")


def test_exact_match_compares_the_stripped_greedy_completion(build, successor, tokenizer):
    records = [
        {"prompt": "say x", "completion": " yzabc"},
        {"prompt": "say x", "completion": "yzabd"},
        {"prompt": "the b", "completion": "cdefg"},
        {"prompt": "b", "completion": "cdef"},
    ]
    objective = build(records, max_new_tokens=5)
    assert objective.measure(as_model(successor, tokenizer), objective.item_ids) == (1, 0, 1, 0)


def test_a_completion_ends_before_the_first_stop_string(build, successor, tokenizer):
    records = [
        {"prompt": "say x", "completion": "yza"},
        {"prompt": "say k", "completion": "l"},
        {"prompt": "say q", "completion": "rstuvwxyza"},
    ]
    objective = build(records, max_new_tokens=20, stop=["mn", "bc"])
    assert objective.measure(as_model(successor, tokenizer), objective.item_ids) == (1, 1, 1)


def test_generation_stops_once_every_row_has_written_a_stop_string(build, successor, tokenizer):
    asked, steps = as_model(successor, tokenizer), []
    successor.register_forward_pre_hook(lambda *_: steps.append(1))
    records = [{"prompt": "say x", "completion": "yz"}, {"prompt": "y", "completion": "z"}]
    objective = build(records, max_new_tokens=200, stop=["ab"])
    objective.measure(asked, ["items/0", "items/1"])
    assert len(steps) == 4


def test_an_end_token_ends_a_completion(build, successor, tokenizer):
    with torch.no_grad():
        successor.lm_head.weight[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("d")] = 9
    objective = build([{"prompt": "say a", "completion": "bcd"}] * 2, max_new_tokens=9)
    assert objective.measure(as_model(successor, tokenizer), ["items/0"]) == (1,)


@pytest.mark.parametrize("openings", ["xxxx", "abcd"], ids=["shared", "each whole"])
def test_sampling_settings_of_the_model_do_not_count(build, successor, tokenizer, openings):
    with torch.no_grad():
        successor.lm_head.weight.add_(1.0)  # Leaves a penalty something to prefer.
    successor.generation_config.do_sample = True
    successor.generation_config.temperature = 50.0
    successor.generation_config.repetition_penalty = 1000.0
    successor.generation_config.suppress_tokens = [tokenizer.convert_tokens_to_ids("z")]
    successor.generation_config.max_length = 3
    records = [{"prompt": f"{o}yz say x", "completion": "yzabcdefgh"} for o in openings]
    objective = build(records, max_new_tokens=10)
    assert objective.measure(as_model(successor, tokenizer), objective.item_ids) == (1, 1, 1, 1)
    assert successor.generation_config.temperature == 50.0


def test_left_padding_does_not_change_what_is_written(model, tokenizer):
    prompts = [encode(tokenizer, pair["prompt"]) for pair in PAIRS]
    alone = [_greedy_by_hand(model, ids, 12) for ids in prompts]
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in alone]
    assert len(set(texts)) == len(texts)
    for batch_size in (1, 2, 5):
        found = as_model(model, tokenizer, batch_size).complete(prompts, CompletionLimits(12, ()))
        assert found == [[text] for text in texts]


def test_sampled_completions_depend_on_prompt_and_seed_and_not_on_their_batch(model, tokenizer):
    prompts = [encode(tokenizer, pair["prompt"]) for pair in PAIRS]
    limits, sampling = CompletionLimits(12, ()), Sampling(3, temperature=1.5, seed=4)
    together = as_model(model, tokenizer, 4).complete(prompts, limits, sampling)
    alone = [as_model(model, tokenizer, 1).complete([p], limits, sampling)[0] for p in prompts]
    assert together == alone
    assert all(len(set(each)) == 3 for each in together)
    other = as_model(model, tokenizer).complete(prompts, limits, sampling._replace(seed=5))
    assert other != together


def test_tokens_are_sampled_by_their_probability(model, tokenizer):
    ids = encode(tokenizer, "the cat")
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1].double() / 2.0
    likely = logits.softmax(-1)
    limits = CompletionLimits(1, ())
    asked = as_model(model, tokenizer, 100)
    for changes, kept in (({"top_k": 3}, 3), ({"top_p": 0.5}, None), ({}, len(likely))):
        sampling = Sampling(2000, temperature=2.0, **changes)
        generated = asked._complete([ids], limits, [], sampling)[0]
        counts = torch.zeros(len(likely)).double()
        for (token,) in generated:
            counts[token] += 1
        order = likely.argsort(descending=True)
        if kept is None:
            kept = int((likely[order].cumsum(0) < 0.5).sum()) + 1
        expected = torch.zeros_like(likely)
        expected[order[:kept]] = likely[order[:kept]] / likely[order[:kept]].sum()
        assert counts[expected == 0].sum() == 0
        assert float((counts / 2000 - expected).abs().max()) < 0.04


def test_sequences_that_differ_in_their_last_token_are_read_once(build, model, tokenizer):
    asked, shapes = as_model(model, tokenizer), []
    model.register_forward_pre_hook(
        lambda _m, _a, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    records = [{"prompt": "the cat", "choices": ["x", "q", "m"], "completion": "q"}] * 2
    objective = build(records, score="choice")
    objective.measure(asked, ["items/0"])
    assert [rows for rows, _ in shapes] == [1]


def _greedy_by_hand(model: Any, ids: list[int], num_tokens: int) -> list[int]:
    written: list[int] = []
    with torch.no_grad():
        while len(written) < num_tokens:
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return written[: written.index(1)] if 1 in written else written


@pytest.mark.parametrize("score", ["nll", "choice", "exact_match"])
def test_scores_do_not_hang_on_order_subset_or_batch_size(build, model, tokenizer, score):
    records = [{**pair, "choices": [pair["completion"], " the hat"]} for pair in PAIRS]
    objective = build(records, score=score)
    ids = list(objective.item_ids)
    whole = dict(zip(ids, objective.measure(as_model(model, tokenizer), ids), strict=True))
    back = objective.measure(as_model(model, tokenizer), ids[::-1])
    assert back == tuple(whole[item] for item in ids[::-1])
    some = objective.measure(as_model(model, tokenizer), [ids[3], ids[0]])
    assert some == pytest.approx((whole[ids[3]], whole[ids[0]]), rel=1e-5)
    single = build(records, score=score, batch_size=1).measure(as_model(model, tokenizer, 1), ids)
    assert single == pytest.approx(tuple(whole.values()), rel=1e-5)


def test_a_sequence_longer_than_the_context_is_cut_from_its_left(build, model, tokenizer):
    long = "x y z " * 400
    records = [{"prompt": long, "completion": "b c d"}, {"prompt": "a", "completion": long}]
    scores = build(records, score="nll").measure(
        as_model(model, tokenizer), ["items/0", "items/1"]
    )
    # The last token is scored and not read, so one more than the context can be scored.
    limit = model.config.max_position_embeddings + 1
    ids = [tokenizer(r["prompt"] + r["completion"])["input_ids"][-limit:] for r in records]
    ending = log_probabilities(model, ids[0])[-5:]
    whole = log_probabilities(model, ids[1])
    assert scores[0] == pytest.approx(-sum(ending) / 5, rel=1e-5)
    assert scores[1] == pytest.approx(-sum(whole) / (limit - 1), rel=1e-5)


def test_a_prompt_leaves_room_for_its_completion(build, successor, tokenizer):
    records = [{"prompt": "k" * 900 + " x", "completion": "yzabcd"}] * 2
    objective = build(records, max_new_tokens=6)
    assert objective.measure(as_model(successor, tokenizer), ["items/1"]) == (1,)
    with pytest.raises(ObjectiveError, match="leave no room"):
        build(records, max_new_tokens=512).measure(as_model(successor, tokenizer), ["items/1"])


def test_weights_changed_in_place_change_the_scores_and_back(build, model, tokenizer):
    objective = build(PAIRS, score="nll")
    before = objective.measure(as_model(model, tokenizer), objective.item_ids)
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    changed = objective.measure(as_model(model, tokenizer), objective.item_ids)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    assert all(a != b for a, b in zip(before, changed, strict=True))
    assert objective.measure(as_model(model, tokenizer), objective.item_ids) == before


def test_a_model_in_training_is_measured_in_eval_mode_and_put_back(build, model, tokenizer):
    adapted = get_peft_model(
        model,
        LoraConfig(r=2, lora_dropout=0.5, init_lora_weights=False, target_modules=["q_proj"]),
    )
    objective = build(PAIRS, score="nll")
    adapted.eval()
    quiet = objective.measure(as_model(adapted, tokenizer), objective.item_ids)
    adapted.train()
    head: Any = adapted.get_output_embeddings()
    head.eval()
    modes = [module.training for module in adapted.modules()]
    assert objective.measure(as_model(adapted, tokenizer), objective.item_ids) == quiet
    assert [module.training for module in adapted.modules()] == modes


def test_an_adapter_generates_as_its_base_where_it_is_identity(build, successor, tokenizer):
    adapted = get_peft_model(successor, LoraConfig(r=2, target_modules=["q_proj"]))
    objective = build([{"prompt": "say x", "completion": "yza"}] * 2, max_new_tokens=3)
    assert objective.measure(as_model(adapted, tokenizer), ["items/0"]) == (1,)


def test_weights_that_are_not_finite_are_an_error(build, model, tokenizer):
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(ObjectiveError, match=r"'items/0' is nan.*weights finite"):
        build(PAIRS, score="nll").measure(as_model(model, tokenizer), ["items/0"])


def test_the_chat_template_makes_the_prompt(build, successor, fresh_tokenizer):
    tokenizer = fresh_tokenizer()
    tokenizer.chat_template = (
        "<s>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} say k{% endif %}"
    )
    asked, seen = as_model(successor, tokenizer), []
    successor.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.extend(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    objective = build(
        [{"prompt": "x", "completion": "lmn"}] * 2,
        tokenizer=tokenizer,
        apply_chat_template=True,
        max_new_tokens=3,
    )
    assert objective.measure(asked, ["items/0"]) == (1,)
    assert tokenizer.decode(seen) == "<s>[user] x say klm"


def test_items_are_named_by_distinct_ids_without_slash_else_by_index(build):
    named = [{**pair, "id": f"q{place}"} for place, pair in enumerate(PAIRS)]
    assert build(named, score="nll").item_ids[:2] == ("items/q0", "items/q1")
    for bad in ("same", "a/b"):
        records = [{**named[0], "id": bad}, *named[1:], {**named[0], "id": bad}]
        assert build(records, score="nll").item_ids[:2] == ("items/0", "items/1")


def test_fingerprint_covers_documents_formats_and_settings(build):
    kept = build(PAIRS, score="nll").info.fingerprint
    assert build(PAIRS, score="nll", batch_size=8).info.fingerprint == kept
    assert build([dict(pair) for pair in PAIRS], score="nll").info.fingerprint == kept
    others = [
        build(PAIRS[:4], score="nll"),
        build([{**PAIRS[0], "completion": "?"}, *PAIRS[1:]], score="nll"),
        build(PAIRS, score="nll", prompt="Q {prompt}"),
        build(PAIRS),
        build(PAIRS, max_new_tokens=3),
    ]
    assert len({kept, *(other.info.fingerprint for other in others)}) == 6


@pytest.mark.parametrize(
    ("records", "settings", "message"),
    [
        (PAIRS, {"prompt": "{promt}"}, "items/0 has no field 'promt'.*Did you mean 'prompt'"),
        (PAIRS, {"prompt": "{prompt"}, "is not a valid format of its fields"),
        (PAIRS, {"apply_chat_template": True}, "no chat template"),
        (PAIRS, {"score": "choice"}, "the field 'choices' must list two or more"),
        ([{"prompt": "a", "completion": " "}], {}, "items/0: the completion is empty"),
        (
            [{"prompt": "a", "completion": "b", "choices": ["c", "d"]}],
            {"score": "choice"},
            "must be exactly one of the choices",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_model_is_used(
    build, records, settings, message
):
    with pytest.raises(ObjectiveError, match=message):
        build(records, **settings)


def test_unknown_and_repeated_items_are_refused(build, model, tokenizer):
    objective = build(PAIRS, score="nll")
    with pytest.raises(ObjectiveError, match="1 items are not in its documents, first 'items/9'"):
        objective.measure(as_model(model, tokenizer), ["items/9"])
    with pytest.raises(ObjectiveError, match="'items/1' is asked for twice"):
        objective.measure(as_model(model, tokenizer), ["items/1", "items/1"])
    assert objective.measure(as_model(model, tokenizer), []) == ()


def test_items_are_encoded_once_for_a_tokenizer_and_anew_for_another():
    calls: list[tuple[str, int]] = []

    def make(tokenizer: str, index: int) -> str:
        calls.append((tokenizer, index))
        return f"{tokenizer}{index}"

    encoded = _EncodedOnce()
    asked = [("a", 0), ("a", 1), ("a", 0), ("b", 0), ("a", 0)]
    assert [encoded.get(*each, make) for each in asked] == ["a0", "a1", "a0", "b0", "a0"]
    assert calls == [("a", 0), ("a", 1), ("b", 0), ("a", 0)]


PASSAGES = [{"id": f"p{i // 3}/{i % 3}", "passage": f"{i // 3} " + "long " * 60,
             "prompt": f"question {i}", "completion": " yes"} for i in range(9)]  # fmt: skip


@pytest.mark.parametrize("cluster", ["passage", "{passage}", "passage {passage}"])
def test_items_with_the_same_field_are_a_cluster(build, cluster):
    objective = build(PASSAGES, name="read", cluster=cluster)
    first = [f"read/p{i // 3}:0" for i in range(9)]
    assert objective.clusters == dict(zip(objective.item_ids, first, strict=True))
    assert objective.shared_field is None
    assert objective.info.fingerprint != build(PASSAGES, name="read").info.fingerprint


def test_ids_with_a_passage_are_all_of_one_stratum(build):
    items = build(PASSAGES, name="read").item_ids
    assert items[:4] == ("read/p0:0", "read/p0:1", "read/p0:2", "read/p1:0")


def test_a_passage_that_items_share_unsaid_is_found(build):
    assert build(PASSAGES).shared_field == "passage"
    same = [{**record, "passage": PASSAGES[0]["passage"]} for record in PASSAGES]
    assert build(same).shared_field is None, "what all items share tells none apart"
    own = [{**record, "passage": f"{i} " + "long " * 60} for i, record in enumerate(PASSAGES)]
    assert build(own).shared_field is None


def test_a_cluster_names_a_field_that_documents_have(build):
    with pytest.raises(ObjectiveError, match=r"no field 'pasage'.*passage"):
        build(PASSAGES, cluster="pasage")
