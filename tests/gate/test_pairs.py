"""What cannot be compared is refused with the first difference."""

from __future__ import annotations

import pytest

from backtrack.errors import UsageError
from backtrack.gate.pairs import pair_up
from backtrack.gate.sides import RecordedScores, RecordedSide


def test_an_objective_that_one_side_lacks_is_named_with_those_it_has(make_side) -> None:
    sides = (
        make_side("new", {"nq": [1, 0, 1]}),
        make_side("old", {"bbh": [1, 0, 1], "mmlu": [1, 0]}),
    )
    with pytest.raises(UsageError, match=r"old has no scores of 'nq'. It has bbh, mmlu"):
        pair_up("nq", *sides)


@pytest.mark.parametrize(
    ("field", "value"), [("unit", "nats a token"), ("direction", "minimize"), ("range", (0, 5))]
)
def test_another_metric_is_refused(make_side, field, value) -> None:
    sides = make_side("new", {"nq": [1, 0]}), make_side("old", {"nq": [1, 0]}, **{field: value})
    with pytest.raises(UsageError, match=f"not the same metric on both sides: its {field} is"):
        pair_up("nq", *sides)


def test_items_that_one_side_lacks_are_counted_and_the_first_is_named(make_side) -> None:
    sides = make_side("new", {"nq": [1] * 8}), make_side("old", {"nq": [1] * 12})
    with pytest.raises(UsageError, match=r"nq/0008 is only in old \(4 such items\)"):
        pair_up("nq", *sides)
    with pytest.raises(UsageError, match=r"nq/0008 is only in old \(4 such items\)"):
        pair_up("nq", *reversed(sides))


def test_other_documents_prompts_or_settings_are_refused_by_fingerprint(make_side) -> None:
    sides = make_side("new", {"nq": [1, 0]}), make_side("old", {"nq": [1, 0]}, fingerprint="other")
    with pytest.raises(UsageError, match=r"documents, prompts or settings differ. Measure both"):
        pair_up("nq", *sides)


def with_prompts(side: RecordedSide, prompts: list[str], *, is_ours: bool = False) -> RecordedSide:
    """The side with digests of what was asked, as lm-eval writes them, or with texts alone."""
    scores = side.objectives["nq"]
    texts = dict(zip(scores.item_ids, prompts, strict=True))
    asked = {item: {"document": "same", "prompt": text} for item, text in texts.items()}
    by_item = dict(zip(scores.item_ids, scores.scores(scores.item_ids), strict=True))
    info = scores.info if is_ours else scores.info.model_copy(update={"fingerprint": ""})
    recorded = RecordedScores(info, by_item, asked={} if is_ours else asked, texts=texts)
    return RecordedSide(side.name, {"nq": recorded})


def test_the_first_prompt_that_differs_is_shown_from_where_it_does(make_side) -> None:
    scores = {"nq": [1, 0, 1]}
    shared = "Answer the question in one word. "
    new = with_prompts(make_side("new", scores), ["same", f"{shared}Q: a?", "other"])
    old = with_prompts(make_side("old", scores), ["same", f"{shared}Who? a?", "more"])
    with pytest.raises(UsageError, match=r"the prompt of nq/0001 differ \('.*Q: a\?' and '.*Who"):
        pair_up("nq", new, old)


def test_texts_are_compared_where_one_side_is_ours(make_side) -> None:
    scores = {"nq": [1, 0]}
    ours = with_prompts(make_side("new", scores), ["Q: a", "Q: b"], is_ours=True)
    theirs = with_prompts(make_side("old", scores), ["Q: a", "Q: z\nA: z\n\nQ: b"])
    assert (
        len(pair_up("nq", ours, with_prompts(make_side("o", scores), ["Q: a", "Q: b"])).item_ids)
        == 2
    )
    with pytest.raises(UsageError, match=r"nq/0001 .*Few-shot examples and chat templates count"):
        pair_up("nq", ours, theirs)
