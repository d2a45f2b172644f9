"""Bits per byte of windows, against sums done by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from backtrack.errors import ObjectiveError
from backtrack.evaluate.build import build_objectives
from tests.evaluate.asking import as_model

TEXT = "the cat sat on the mat. caf\u00e9s & na\u00efve d\u00f6gs ran to the hat; " * 12


@pytest.fixture
def build(recipe_of, tmp_path, tokenizer):
    def first(text: str = TEXT, batch_size: int = 4, **settings: Any) -> Any:
        path = tmp_path / "running.txt"
        path.write_text(text, encoding="utf-8")
        settings = {"kind": "text", "path": str(path), "window_tokens": 16, **settings}
        with_tokenizer = settings.pop("tokenizer", tokenizer)
        return build_objectives(recipe_of(settings, batch_size=batch_size), with_tokenizer)[0]

    return first


def test_a_windows_score_is_bits_over_bytes_of_its_tokens_but_the_first(build, model, tokenizer):
    text = "the cat sat on the mat, the dog ran; " * 12
    objective = build(text)
    scores = objective.measure(as_model(model, tokenizer), objective.item_ids)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(scores) == len(ids) // 16
    for number, score in enumerate(scores):
        window = ids[16 * number : 16 * number + 16]
        num_bytes = len(tokenizer.decode(window[1:]))
        expected = _nats(model, [tokenizer.bos_token_id, *window]) / math.log(2) / num_bytes
        assert score == pytest.approx(expected, rel=1e-5)
    assert (objective.info.direction, objective.info.unit) == ("minimize", "bits a byte")


def _nats(model: Any, ids: list[int]) -> float:
    """Of the tokens after the second."""
    with torch.no_grad():
        table = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return -sum(float(table[place, token]) for place, token in enumerate(ids[1:]) if place > 0)


def test_bytes_are_those_of_utf_8_to_within_a_character_at_each_end(build, model, tokenizer):
    objective = build()
    scores = objective.measure(as_model(model, tokenizer), objective.item_ids)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    for number, score in enumerate(scores):
        window = ids[16 * number : 16 * number + 16]
        # The written form of a byte-level token has one character a byte.
        num_bytes = sum(len(token) for token in tokenizer.convert_ids_to_tokens(window[1:]))
        bits = _nats(model, [tokenizer.bos_token_id, *window]) / math.log(2)
        assert abs(bits / score - num_bytes) < 1.01


def test_a_uniform_model_spends_the_bits_of_its_vocabulary(build, model, tokenizer):
    with torch.no_grad():
        model.lm_head.weight.zero_()
    text = "!" * 64
    objective = build(text, window_tokens=8)
    scores = objective.measure(as_model(model, tokenizer), objective.item_ids)
    assert scores == pytest.approx([math.log2(model.config.vocab_size)] * 8, rel=1e-5)


def test_no_opening_token_is_read_where_the_tokenizer_has_none(build, model, fresh_tokenizer):
    bare = fresh_tokenizer(has_bos=False)
    asked, seen = as_model(model, bare), []
    model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    objective = build(tokenizer=bare)
    objective.measure(asked, objective.item_ids[:1])
    assert seen[0].tolist() == [bare(TEXT)["input_ids"][:15]]  # the 16th is scored, not read


def test_windows_are_evenly_spaced_and_keep_their_numbers(build):
    total = len(build().item_ids)
    objective = build(max_items=4)
    assert objective.item_ids == tuple(f"running/{i * total // 4}" for i in range(4))


def test_start_leaves_out_the_first_share_of_the_text(build, model, tokenizer):
    text = "!" * 320 + "?" * 320
    objective = build(text, start=0.5, window_tokens=8)
    late = build("?" * 320, window_tokens=8)
    assert objective.item_ids == late.item_ids
    assert objective.measure(as_model(model, tokenizer), ["running/0"]) == late.measure(
        as_model(model, tokenizer), ["running/0"]
    )


def test_records_make_one_running_text(build, jsonl, recipe_of, tokenizer):
    records = [{"q": f"the cat {number}", "a": "sat"} for number in range(30)]
    settings = {"kind": "text", "path": jsonl(records), "window_tokens": 16}
    by_format = build_objectives(recipe_of({**settings, "field": "{q} {a}"}), tokenizer)[0]
    joined = build("\n\n".join(f"{r['q']} {r['a']}" for r in records))
    assert len(by_format.item_ids) == len(joined.item_ids)
    by_name = build_objectives(recipe_of({**settings, "field": "q"}), tokenizer)[0]
    assert len(by_name.item_ids) < len(joined.item_ids)
    with pytest.raises(ObjectiveError, match="record 0 has no field 'text'"):
        build_objectives(recipe_of(settings), tokenizer)


def test_scores_come_in_the_order_asked(build, model, tokenizer):
    objective = build()
    ids = objective.item_ids
    scores = objective.measure(as_model(model, tokenizer), ids)
    assert objective.measure(as_model(model, tokenizer), ids[::-1]) == scores[::-1]
    assert objective.measure(as_model(model, tokenizer), []) == ()


def test_fingerprint_covers_text_windows_and_tokenizer(build, fresh_tokenizer):
    kept = build().info.fingerprint
    assert build(batch_size=2).info.fingerprint == kept
    others = [
        build(TEXT.replace("cat", "cow")),
        build(window_tokens=8),
        build(tokenizer=fresh_tokenizer(has_bos=False)),
    ]
    assert len({kept, *(other.info.fingerprint for other in others)}) == 4


def test_too_short_a_text_and_too_long_a_window_are_refused(build, model, tokenizer):
    with pytest.raises(ObjectiveError, match="fewer than two windows of 16"):
        build("the cat")
    objective = build(TEXT * 4, window_tokens=600)
    with pytest.raises(ObjectiveError, match=r"601 tokens, the model's context 512"):
        objective.measure(as_model(model, tokenizer), objective.item_ids)


def test_a_text_that_is_not_utf_8_is_refused(recipe_of, tmp_path, tokenizer):
    path = tmp_path / "latin.txt"
    path.write_bytes(TEXT.encode("latin-1"))
    settings = {"kind": "text", "path": str(path), "window_tokens": 16}
    with pytest.raises(ObjectiveError, match=r"latin.txt cannot be read as UTF-8 text"):
        build_objectives(recipe_of(settings), tokenizer)


def test_windows_that_begin_in_records_of_a_book_are_a_cluster(build, tmp_path):
    lines = [{"text": "the cat sat on the mat. " * 8, "book": f"book {i // 2}"} for i in range(6)]
    path = tmp_path / "books.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    objective = build(path=str(path), cluster="book", start=0.2)
    clusters = [objective.clusters[item_id] for item_id in objective.item_ids]
    assert clusters == sorted(clusters, key=objective.item_ids.index)
    assert len(set(clusters)) == 3
    shares = [clusters.count(cluster) / len(clusters) for cluster in dict.fromkeys(clusters)]
    assert shares == pytest.approx([0.13 / 0.8, 0.33 / 0.8, 0.33 / 0.8], abs=0.08)
    plain = build(path=str(path), start=0.2)
    assert not plain.clusters
    assert plain.info.fingerprint != objective.info.fingerprint


def test_a_file_without_fields_has_no_clusters(build):
    with pytest.raises(ObjectiveError, match="plain text without fields"):
        build(cluster="book")
