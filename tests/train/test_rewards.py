"""Verifiable rewards: which completions are correct, and which data is refused."""

from __future__ import annotations

import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from backtrack.errors import UsageError
from backtrack.recipe import DataSection, Reward
from backtrack.train.trainers.data import load_prompts
from backtrack.train.trainers.rewards import extract_letter, extract_number, reward_function
from tests.models import make_tokenizer


def reward(**section: Any) -> Any:
    """A reward section as loaded from a recipe."""
    loaded: Any = TypeAdapter(Reward).validate_python({"name": section["kind"], **section})
    return loaded


def scored(completion: Any, answer: str = "", **section: Any) -> float | None:
    function = reward_function(reward(**section))
    scores = function(
        prompts=["?"], completions=[completion], **{f"answer of {section['kind']}": [answer]}
    )
    assert len(scores) == 1
    return scores[0]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("46", 46),
        ("so it is 1,234.50 dollars.", Fraction(2469, 2)),
        (r"x = \boxed{\frac{1}{2}}, not 3", Fraction(1, 2)),
        (r"\boxed{a_{1} + 7}", 7),
        ("2 + 2 = 4.\n#### -7", -7),
        ("10-4=6", 6),
        ("8-3", 3),
        ("\u22125", -5),
        ("about .5", Fraction(1, 2)),
        ("3/4 of it", Fraction(3, 4)),
        ("1,2345", 2345),
        ("1/0", None),
        ("none", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(text: str, number: Fraction | None) -> None:
    assert extract_number(text) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" c ", "C"),
        ("The answer is (D).", "D"),
        ("**Answer: A**, since B is wrong.", "A"),
        (r"A patient came. \boxed{C}", "C"),
        ("(A) is wrong, (E) is right", "E"),
        ("It must be B.", "B"),
        ("A patient with fever", None),
        ("I think so", None),
        ("Because of E. coli the answer is D", "D"),
    ],
)
def test_the_letter_of_an_answer(text: str, letter: str | None) -> None:
    assert extract_letter(text, "ABCDE") == letter


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        (r"Thus \boxed{\frac{1}{2}}.", "0.5", 1),
        ("The answer is 0.5", r"\frac12", 1),
        ("It is $x^2+1$.", "1+x^2", 1),
        (r"so $2\sqrt{2}$", r"\sqrt{8}", 1),
        (r"\boxed{(1,2)}", "$(1, 2)$", 1),
        ("1,000", "10 * 100 #### 1000", 1),
        ([{"role": "assistant", "content": r"\boxed{7}"}], "7", 1),
        (r"x=3, but \boxed{4}", "3", 0),
        ("no idea", "17", 0),
    ],
)
def test_equal_expressions_are_right_however_they_are_written(
    completion: Any, answer: str, score: int
) -> None:
    assert scored(completion, answer, kind="math_verify") == score


def test_expressions_are_compared_off_the_main_thread_too() -> None:
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.append(scored(r"\boxed{2}", "2", kind="math_verify"))
    )
    thread.start()
    thread.join()
    assert found == [1.0]


def test_numbers_are_compared_exactly_or_within_a_share() -> None:
    assert scored("0.3", "3/10", kind="numeric") == 1
    assert scored("0.30001", "0.3", kind="numeric") == 0
    assert scored("108", "100", kind="numeric", tolerance=0.1) == 1
    assert scored("word", "100", kind="numeric", tolerance=0.1) == 0


def test_a_format_is_of_the_whole_completion() -> None:
    form = {"kind": "format", "pattern": "<think>.*</think>.+"}
    assert scored("  <think>a\nb</think>\n7 ", **form) == 1
    assert scored("well, <think>a</think> 7", **form) == 0


def test_a_choice_is_by_its_letter() -> None:
    assert scored("The answer is (B)", "B", kind="choice") == 1
    assert scored("(F)", "F", kind="choice", letters="ABCDEF") == 1
    assert scored("(C)", "B", kind="choice") == 0


FUNCTIONS = """\
def length(prompts, completions, limit, **others):
    return [None if n == 0 else len(c) / n for c, n in zip(completions, limit)]

def short(completions, **others):
    return [1.0] * (len(completions) - 1)

def broken(completions, **others):
    return [c.no_such_method() for c in completions]
"""


def test_a_function_is_given_every_field_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rewards.py").write_text(FUNCTIONS)
    (tmp_path / "data.jsonl").write_text(
        '{"prompt": "a", "limit": 2, "right": "3"}\n{"prompt": "b", "limit": 0, "right": "4"}\n'
    )
    monkeypatch.chdir(tmp_path)
    own = reward(kind="python", function="my_rewards:length")
    exact = reward(kind="numeric", answer="{right}")
    data = load_prompts(DataSection(train="data.jsonl"), make_tokenizer(), [own, exact])
    assert data[1] == {"prompt": "b", "limit": 0, "right": "4", "answer of numeric": "4"}
    columns = {name: data[name] for name in data.column_names if name != "prompt"}
    asked = {"prompts": data["prompt"], "completions": ["xxx", "x"], **columns}
    assert reward_function(own)(**asked) == [1.5, None]
    for name, message in [("short", "returned 1 scores for 2"), ("broken", "AttributeError")]:
        function = reward_function(reward(kind="python", function=f"my_rewards:{name}"))
        with pytest.raises(UsageError, match=message):
            function(**asked)
    with pytest.raises(UsageError, match="Did you mean 'length'"):
        reward_function(reward(kind="python", function="my_rewards:lenght"))


@pytest.mark.parametrize(
    ("section", "answer"),
    [({"kind": "numeric"}, "many"), ({"kind": "math_verify"}, ""), ({"kind": "choice"}, "F")],
)
def test_an_answer_that_nothing_could_match_is_refused_before_training(
    tmp_path: Path, section: dict[str, Any], answer: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        f'{{"prompt": "a", "answer": "3 (B)"}}\n{{"prompt": "b", "answer": "{answer}"}}\n'
    )
    data = DataSection(train=str(path))
    with pytest.raises(UsageError, match=r"data.jsonl, item 1: the reward .* in the answer"):
        load_prompts(data, make_tokenizer(), [reward(**section)])
    kept = load_prompts(data, make_tokenizer(), [reward(**section, unreadable="drop")])
    assert kept["prompt"][:] == ["a"]


def test_data_without_prompts_says_how_to_make_them(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompts": "a", "answer": "3"}\n')
    with pytest.raises(UsageError, match=r"no `prompt`. Did you mean 'prompts'"):
        load_prompts(DataSection(train=str(path)), make_tokenizer(), [reward(kind="numeric")])
