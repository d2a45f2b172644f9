"""What lm-eval's tasks ask and what their records say was answered, as our own records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backtrack.records.answers import Answer, Question

if TYPE_CHECKING:
    from collections.abc import Mapping


def question_of(task: Any, document: Any) -> Question:
    """What a document asks, without examples, its right answer and its choices."""
    choices: tuple[str, ...] = ()
    if task.OUTPUT_TYPE == "multiple_choice" and hasattr(task, "doc_to_choice"):
        choices = tuple(map(str, task.doc_to_choice(document)))
    target = task.doc_to_target(document)
    is_index = isinstance(target, int) and 0 <= target < len(choices)
    listed = target if isinstance(target, list) else [choices[target] if is_index else target]
    return Question(
        prompt=str(task.doc_to_text(document)),
        gold=" | ".join(str(answer).strip() for answer in listed),
        choices=choices,
    )


def answer_of(record: Mapping[str, Any], before: Answer) -> Answer:
    """What a record says was answered, after the answers of the samples before.

    Args:
        record: lm-eval's record of one document; `resps` holds what its model returned to each
            request: a text, a log-likelihood with whether it is greedy, or a log-likelihood alone.
        before: The answers of the samples before.
    """
    returned = [each[0] for each in record["resps"]]
    texts = tuple(value for value in returned if isinstance(value, str))
    if texts:
        return Answer(texts=before.texts + texts)
    values = (value[0] if isinstance(value, tuple | list) else value for value in returned)
    return Answer(likelihoods=tuple(float(value) for value in values))
