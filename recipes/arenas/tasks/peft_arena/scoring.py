"""Scores of PEFT-Arena's benchmarks, by the rules of its release and of OpenCompass.

The release grades mathematics by a grader of its own; here its rule finds the answer in a
completion, and math-verify says whether it equals the right one.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

import math_verify

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def mathematics(document: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """The share of all sampled completions whose answer is right."""
    completions = results[0] if isinstance(results[0], list) else [results[0]]
    gold = str(document["answer"]).removesuffix(".0")
    right = [is_equal(final_answer(text), gold) for text in completions]
    return {"acc": sum(right) / len(right)}


def final_answer(completion: str) -> str:
    """What a completion says: its last box, else what "answer is" says, else the last number."""
    if "boxed" in completion:
        return _boxed(completion.rpartition("boxed")[2])
    for words in ("he answer is", "final answer is"):
        if words in completion:
            return completion.rpartition(words)[2].lstrip(": ").rstrip(". ")
    numbers = re.findall(r"-?\d*\.?\d+", completion.replace(",", ""))
    return numbers[-1] if numbers else ""


def _boxed(rest: str) -> str:
    """What stands in the braces that a text begins with, or before the next dollar sign."""
    if not rest.startswith("{"):
        return rest.partition("$")[0].strip()
    depth = 0
    for end, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:end]
    return rest[1:]


def is_equal(answer: str, gold: str) -> bool:
    """Whether two answers are the same text, or the same number or expression."""
    if answer.strip().lower() == gold.strip().lower():
        return True
    # math-verify reads no number that begins with its point.
    whole = [re.sub(r"(?<!\d)\.(?=\d)", "0.", text) for text in (answer, gold)]
    parsed, right = (math_verify.parse(f"${text}$") for text in whole)
    return bool(math_verify.verify(right, parsed))


def choice(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the last choice that a completion names is the right one."""
    options = {k: v for k, v in document["options"].items() if v is not None}
    return {"acc": float(last_choice(results[0], options) == document["answer_idx"])}


def last_choice(completion: str, options: Mapping[str, str]) -> str:
    """The letter that a completion names last, by the first rule that finds one.

    In turn: a letter after "answer is"; a letter that stands alone; the choice whose text comes
    last; the choice whose text is most like the whole completion.
    """
    text = completion.rpartition("## Final Response\n\n")[2]
    named = re.findall(r"answer is\s*([A-N])", text)
    if named:
        return str(named[-1])
    letters = "ABCDEFGHIJKLMN"[: len(options)]
    alone = re.findall(
        rf"(?:^|[\W\u4e00-\u9fff])(?![aA] )([{letters}])(?:[\W\u4e00-\u9fff]|$)", text
    )
    if alone:
        return str(alone[-1])
    lower = text.lower()
    places = {letter: lower.rfind(content.lower()) for letter, content in options.items()}
    if max(places.values()) >= 0:
        return max(places, key=lambda letter: places[letter])
    return max(
        reversed(options),
        key=lambda letter: difflib.SequenceMatcher(None, options[letter].lower(), lower).ratio(),
    )


def instruction(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a completion follows the document's one instruction, strictly."""
    from lm_eval.tasks.ifeval.utils import process_results

    followed = process_results(document, list(results))["prompt_level_strict_acc"]
    return {"inst_level_strict_acc": float(followed)}


def short_answer(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a right answer is part of what the first line says."""
    said = plain(results[0].strip().partition("\n")[0].lower().rpartition("answer is")[2])
    return {"acc": float(any(plain(right).lower() in said for right in document["answer"]))}


def plain(text: str) -> str:
    """A text up to its first full stop or comma, without punctuation and articles."""
    words = re.sub(r"[^\w\s]", "", re.split(r"[\n.,]", text, maxsplit=1)[0])
    return " ".join(re.sub(r"\b(?:a|an|the)\b", "", words, flags=re.IGNORECASE).split())


def chain_of_thought(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a chain of thought ends in the right letter, or in exactly the right words."""
    target = document["target"]
    if document["asks_for_letter"]:
        return {"acc": float(_letter(results[0]) == _letter(target))}
    return {"acc": float(_last_words(results[0]) == target)}


def _after_answer_is(text: str) -> str:
    parts = text.split("answer is ")
    return parts[1].strip() if len(parts) > 1 else text


def _letter(text: str) -> str:
    said = _after_answer_is(text)
    found = re.search(r"\(([A-Z])", said) or re.search("([A-Z])", said)
    return found.group(1) if found else said


def _last_words(text: str) -> str:
    said = _after_answer_is(text).partition("\n")[0].strip()
    said = said.removesuffix(".").strip()
    bold = re.search(r"\*\*(.*?)\*\*", said)
    return bold.group(1) if bold else said
