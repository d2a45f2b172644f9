r"""Verifiable rewards: compare the answer in a completion with the correct one in the data.

A completion's ANSWER is the content of its last \boxed{...}, else the text after its last `####`,
else all of it. Rewards are 1 or 0 and have TRL's signature. Each has its name from the recipe,
under which TRL logs its mean and standard deviation; TRL computes the weighted sum.

Promised: an answer in the data that cannot be read is an error before training, not a silent 0.
Not promised: that a user's own function is fast, or safe with what a model may write.
"""

from __future__ import annotations

import logging
import re
import threading
from fractions import Fraction
from typing import TYPE_CHECKING, Any, assert_never

from backtrack.errors import BacktrackError, ObjectiveError, UsageError
from backtrack.evaluate.objectives.function import importable, lookup
from backtrack.recipe import (
    ChoiceReward,
    FormatReward,
    MathVerifyReward,
    NumericReward,
    PythonReward,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backtrack.recipe import Reward

_NUMBER = re.compile(
    r"(?:(?<![\d)])[-+\u2212])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+)?"
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_LEAD = re.compile(r"(?i)\b(?:answer|option|choice)\b[^A-Za-z0-9]*(?:is|:|=)?[^A-Za-z0-9]*")
_PARSING_SECONDS, _VERIFYING_SECONDS = 5, 5


def extract_answer(text: str) -> str:
    """Return the part of a completion that contains its answer."""
    begin = text.rfind("\\boxed{")
    if begin >= 0:
        return _braced(text, begin + len("\\boxed{"))
    _, mark, after = text.rpartition("####")
    return after if mark else text


def _braced(text: str, begin: int) -> str:
    """Return the text up to the closing brace, or all of it if there is none."""
    depth = 1
    for i in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[begin:i]
    return text[begin:]


def extract_number(text: str) -> Fraction | None:
    """Return an answer's last number: integer, decimal or fraction; thousands may have commas."""
    numbers = _NUMBER.findall(_LATEX_FRACTION.sub(r"\1/\2", extract_answer(text)))
    if not numbers:
        return None
    number = numbers[-1].replace(",", "").replace(" ", "").replace("\u2212", "-")
    try:
        return Fraction(number)
    except (ValueError, ZeroDivisionError):
        return None


def extract_letter(text: str, letters: str) -> str | None:
    """Return the last letter of an answer that names a choice; None if there is none.

    A letter counts alone, after `answer is` and similar phrases, in brackets, or before `.`, `)`,
    `:` or the end of the text. The article in `A patient` does not.
    """
    answer = extract_answer(text).strip()
    if answer.upper() in letters and len(answer) == 1:
        return answer.upper()
    letter = f"[{letters}]"
    phrased = re.findall(rf"{_LEAD.pattern}({letter})(?![A-Za-z'])", answer)
    marked = re.findall(rf"\(({letter})\)|(?<![A-Za-z])({letter})(?=[.):]|\s*$)", answer)
    named = phrased or [first or second for first, second in marked]
    return named[-1] if named else None


class VerifiedReward:
    """Scores completions against a column of correct answers; abstract.

    Attributes:
        column: The answers' column in the training data; empty if the reward needs none.
    """

    def __init__(self, name: str, column: str) -> None:
        self.__name__ = name
        self.column = column

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        answers = columns[self.column] if self.column else [""] * len(completions)
        return [
            float(self.is_correct(completion_text(completion), answer))
            for completion, answer in zip(completions, answers, strict=True)
        ]

    def is_correct(self, text: str, answer: str) -> bool:
        raise NotImplementedError

    def require_readable(self, answer: str, where: str) -> None:
        """Refuse an answer in the data that no completion could match.

        Args:
            answer: The answer.
            where: File and item, for the message.

        Raises:
            UsageError: The answer cannot be read.
        """


class _Numeric(VerifiedReward):
    def __init__(self, name: str, column: str, tolerance: float) -> None:
        super().__init__(name, column)
        self._tolerance = Fraction(tolerance)

    def is_correct(self, text: str, answer: str) -> bool:
        number, correct = extract_number(text), extract_number(answer)
        if number is None or correct is None:
            return False
        return abs(number - correct) <= self._tolerance * abs(correct)

    def require_readable(self, answer: str, where: str) -> None:
        if extract_number(answer) is None:
            raise _unreadable(self.__name__, answer, where, "no number")


class _MathVerify(VerifiedReward):
    def is_correct(self, text: str, answer: str) -> bool:
        from math_verify import verify

        seconds = _time_limit(_VERIFYING_SECONDS)
        return bool(verify(_parsed_answer(answer), _expressions(text), timeout_seconds=seconds))

    def require_readable(self, answer: str, where: str) -> None:
        if not _parsed_answer(answer):
            raise _unreadable(self.__name__, answer, where, "no expression")


class _Choice(VerifiedReward):
    def __init__(self, name: str, column: str, letters: str) -> None:
        super().__init__(name, column)
        self._letters = letters

    def is_correct(self, text: str, answer: str) -> bool:
        return extract_letter(text, self._letters) == extract_letter(answer, self._letters)

    def require_readable(self, answer: str, where: str) -> None:
        if extract_letter(answer, self._letters) is None:
            raise _unreadable(self.__name__, answer, where, f"none of the letters {self._letters}")


class _Format(VerifiedReward):
    def __init__(self, name: str, pattern: str) -> None:
        super().__init__(name, "")
        self._pattern = re.compile(pattern, re.DOTALL)

    def is_correct(self, text: str, answer: str) -> bool:  # noqa: ARG002  # a format has no answer
        return self._pattern.fullmatch(text.strip()) is not None


class _Python:
    """A function of the user's; it may import modules from the working directory."""

    column = ""

    def __init__(self, name: str, function: str) -> None:
        self.__name__ = name
        self._spec = function
        try:
            self._function = lookup(function)
        except ObjectiveError as error:
            raise UsageError(f"rewards: {error}") from error

    def __call__(self, **fields: Any) -> list[float | None]:
        from pathlib import Path

        try:
            with importable(Path.cwd()):
                scores = [None if s is None else float(s) for s in self._function(**fields)]
        except BacktrackError:
            raise
        except Exception as error:
            raise UsageError(
                f"reward {self._spec} failed: {type(error).__name__}: {error}. It is called as "
                "function(prompts=..., completions=..., **fields) and returns one number, or "
                "None, a completion."
            ) from error
        if len(scores) != len(fields["completions"]):
            raise UsageError(
                f"reward {self._spec} returned {len(scores)} scores for "
                f"{len(fields['completions'])} completions. Return one each, in their order."
            )
        return scores


def reward_function(reward: Reward) -> VerifiedReward | _Python:
    """Return the function that TRL calls for a recipe's reward.

    Raises:
        UsageError: A Python reward's function is not found.
    """
    column = f"answer of {reward.name}"
    match reward:
        case NumericReward():
            return _Numeric(reward.name, column, reward.tolerance)
        case MathVerifyReward():
            return _MathVerify(reward.name, column)
        case ChoiceReward():
            return _Choice(reward.name, column, reward.letters)
        case FormatReward():
            return _Format(reward.name, reward.pattern)
        case PythonReward():
            return _Python(reward.name, reward.function)
        case _:
            assert_never(reward)


def completion_text(completion: Any) -> str:
    """Return the text of a completion, which TRL passes as text or as a list of chat turns."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"]) if completion else ""


def _expressions(text: str) -> list[Any]:
    """Parse a completion by math-verify: boxed LaTeX first, then LaTeX, then plain text."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    expressions: list[Any] = parse(
        text,
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()],
        parsing_timeout=_time_limit(_PARSING_SECONDS),
    )
    return expressions


def _parsed_answer(answer: str) -> list[Any]:
    """Parse a correct answer by math-verify; one without words is LaTeX, with or without $."""
    plain = extract_answer(answer).strip()
    as_latex = "$" + plain.strip("$") + "$"
    forms = [plain, as_latex] if _WORD.search(plain) else [as_latex, plain]
    return _expressions(forms[0]) or _expressions(forms[1])


def _time_limit(seconds: int) -> int | None:
    """Return the limit on the main thread, else None: math-verify sets it by a signal alarm."""
    if threading.current_thread() is threading.main_thread():
        return seconds
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return None


def _unreadable(name: str, answer: str, where: str, missing: str) -> UsageError:
    return UsageError(
        f"data: {where}: the reward {name!r} finds {missing} in the answer {answer!r}. "
        'Set its field: `rewards: [{kind: ..., answer: "{field}"}]`.'
    )
