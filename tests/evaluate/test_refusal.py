"""Refusal rates: the share of completions in which one of the recipe's patterns is found."""

from __future__ import annotations

from typing import Any

import pytest

from backtrack.evaluate.build import build_objectives
from tests.evaluate.asking import as_model

PROMPTS = [{"prompt": "say x"}, {"prompt": "the b"}, {"prompt": "say k"}]
"""The model goes on with yzabc, cdefg and lmnop."""


@pytest.fixture
def build(recipe_of, jsonl, tokenizer):
    """The refusal objective over these prompts."""

    def first(records: list[dict[str, Any]] = PROMPTS, **settings: Any) -> Any:
        section = {"kind": "refusal", "path": jsonl(records), "max_new_tokens": 5, **settings}
        return build_objectives(recipe_of(section), tokenizer)[0]

    return first


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [(["za"], (1, 0, 0)),
     (["c", "^l"], (1, 1, 1)),
     (["^z", "p$"], (0, 0, 1)),
     (["LMN"], (0, 0, 0)),
     (["(?i)LMN"], (0, 0, 1))],
)  # fmt: skip
def test_a_completion_in_which_a_pattern_is_found_is_a_refusal(
    build, successor, tokenizer, patterns, expected
):
    objective = build(patterns=patterns)
    assert objective.measure(as_model(successor, tokenizer), objective.item_ids) == expected


def test_sampled_completions_count_by_their_share(build, model, tokenizer):
    sampled = {"samples": 8, "temperature": 2.0}
    asked = as_model(model, tokenizer)
    one, other, either = (
        build(patterns=patterns, sampling=sampled).measure(asked, ["items/0"])[0]
        for patterns in (["[a-z]"], [r"^[^a-z]*\Z"], ["[a-z]", r"^[^a-z]*\Z"])
    )
    assert one + other == either == 1
    assert 0 < one < 1
    assert all(share * 8 == int(share * 8) for share in (one, other))


def test_what_decides_a_score_is_in_the_fingerprint_and_the_direction_is_the_users(build):
    kept = build(patterns=["no"])
    assert (kept.info.direction, kept.info.unit) == ("maximize", "fraction")
    harmless = build(patterns=["no"], direction="minimize")
    assert harmless.info.direction == "minimize"
    assert harmless.info.fingerprint == kept.info.fingerprint
    others = [build(patterns=["No"]), build(patterns=["no"], stop=["."]),
              build(PROMPTS[::-1], patterns=["no"])]  # fmt: skip
    assert len({kept.info.fingerprint, *(o.info.fingerprint for o in others)}) == 4


def test_tokens_of_an_item_are_its_prompt_and_what_is_written(build):
    section = build(patterns=["no"])._section
    tokens = type(build(patterns=["no"])).tokens_per_item(section, len)
    assert tokens == sum(len(record["prompt"]) for record in PROMPTS) / 3 + 5


@pytest.mark.parametrize(
    ("patterns", "said"),
    [(["I can(no|'t"], "is not a regular expression"), ([], "at least 1 item")],
)
def test_patterns_that_are_none_are_refused(build, patterns, said):
    with pytest.raises(ValueError, match=said):
        build(patterns=patterns)
