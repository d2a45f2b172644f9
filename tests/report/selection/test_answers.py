"""The page's items won and lost: every text harmless, one outcome at a time, reachable by keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from markupsafe import escape

from backtrack.records.answers import (
    Answer,
    ComparedItem,
    ComparedObjective,
    Comparison,
    Question,
)
from backtrack.report.selection.answers import MAX_CHARACTERS, section
from backtrack.report.selection.page import write_report
from tests.report.browser import Browser, needs_chromium

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backtrack.records.selection import Selection

OUTCOMES = ("lost", "won", "both_wrong")
HOSTILE = "</script><script>document.title='owned'</script>&amp;\x1b[2J\x00\u202etxt"


def item(number: int, scores: tuple[float, ...], text: str = "") -> ComparedItem:
    said = [f"It is {number + i}.{text}" for i, _ in enumerate(scores)]
    return ComparedItem(
        item=f"sums/{number}",
        question=Question(prompt=f"What is {number} plus 1?{text}", gold=f"{number + 1}{text}"),
        scores=scores,
        answers=tuple(Answer(texts=(each,)) for each in said),
    )


def compared(selection: Selection, text: str = "", num_lost: int = 3) -> Comparison:
    """Two objectives of three points: one with all outcomes, one with items lost alone."""
    lost = tuple(item(i, (1.0, 0.0, 0.0), text) for i in range(num_lost))
    picks = ComparedItem(
        item="picks/0",
        question=Question(prompt="Pick:", gold="cat", choices=("cat", "dog")),
        scores=(1.0, 0.0, 1.0),
        answers=(Answer(likelihoods=(-1.0, -2.0)), Answer(likelihoods=(-2.0, -1.0)), None),
    )
    common = {"role": "general", "unit": "fraction", "split": "report", "num_items": 40}
    outcomes = {
        "num_lost": 17,
        "num_won": 1,
        "num_both_wrong": 1,
        "lost": lost,
        "won": (item(90, (0.0, 1.0, 1.0), text),),
        "both_wrong": (item(95, (0.0, 0.0, 1.0), text),),
    }
    alone = {"num_lost": 1, "num_won": 0, "num_both_wrong": 0, "lost": (picks,)}
    return Comparison(
        points=(selection.base, selection.chosen, selection.final),
        objectives=(
            ComparedObjective(
                objective=f"sums{text}", means=(0.9, 0.5, 0.5), change=-40.0, **common, **outcomes
            ),
            ComparedObjective(
                objective="picks", means=(1.0, 0.9, 1.0), change=-2.5, **common, **alone,
                won=(), both_wrong=(),
            ),
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, made: Any, percents: Selection) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    measurements, entries = made.measurements(percents), made.entries()
    comparison = compared(percents, HOSTILE)
    return write_report(folder, percents, measurements, entries, compared=comparison)


def test_what_a_model_said_can_neither_run_nor_hide(page: Path) -> None:
    text = page.read_text("utf-8")
    assert HOSTILE[:20] not in text
    assert escape(HOSTILE[:40]) in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert r"\x1b[2J\x00\u202etxt" in text


def test_a_long_prompt_shows_its_end_and_a_long_answer_its_start(percents: Selection) -> None:
    found = section(compared(percents, "x" * MAX_CHARACTERS), percents)
    assert found is not None
    shown = found["objectives"][0]["outcomes"][0]["shown"][0]
    assert shown["prompt"] == f"\N{HORIZONTAL ELLIPSIS}{'x' * MAX_CHARACTERS}"
    (text,) = shown["said"][0]["texts"]
    assert text == f"It is 0.{'x' * (MAX_CHARACTERS - 8)}\N{HORIZONTAL ELLIPSIS}"


def test_a_page_without_kept_answers_says_nothing_of_them(percents: Selection) -> None:
    found = compared(percents)
    bare = [
        each.model_copy(update={outcome: _bare(getattr(each, outcome)) for outcome in OUTCOMES})
        for each in found.objectives
    ]
    assert section(found.model_copy(update={"objectives": tuple(bare)}), percents) is None


def _bare(items: tuple[ComparedItem, ...]) -> tuple[ComparedItem, ...]:
    unknown = {"question": None, "answers": (None, None, None)}
    return tuple(each.model_copy(update=unknown) for each in items)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    started = Browser()
    yield started
    started.close()


SUMS, PICKS = "[data-answers]:nth-of-type(1)", "[data-answers]:nth-of-type(2)"


def shown(browser: Browser, section: str) -> list[str]:
    return browser.texts(f"{section} article:not([hidden]) h4")


def press(browser: Browser, key: str) -> None:
    browser.driver.switch_to.active_element.send_keys(key)


@needs_chromium
def test_one_outcome_is_shown_at_a_time(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert shown(browser, SUMS) == [f"lost sums/{i}" for i in range(3)]
    browser.run("document.querySelector(arguments[0]).click()", f"{SUMS} [value=won]")
    assert shown(browser, SUMS) == ["won sums/90"]
    assert shown(browser, PICKS) == ["lost picks/0"]
    sample = browser.run("return document.querySelector('[data-sample=lost]').hidden")
    assert sample, "how many of the lost are shown is said beside them alone"
    browser.run("document.querySelector(arguments[0]).click()", f"{SUMS} [value='both wrong']")
    assert shown(browser, SUMS) == ["both wrong sums/95"]
    assert [each for each in browser.texts(f"{PICKS} dd") if each] == [
        "cat",
        "cat",
        "dog",
        "not kept",
    ]
    assert browser.run("return document.title") != "owned"
    assert browser.messages() == []


@needs_chromium
def test_keys_go_from_item_to_item_and_choose_the_outcome(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector(arguments[0]).focus()", f"{SUMS} input")
    heads = []
    for key in "jjjjk":
        press(browser, key)
        heads.append(browser.run("return document.activeElement.querySelector('h4').textContent"))
    assert [head.rpartition("/")[2] for head in heads] == ["0", "1", "2", "2", "1"]
    stops = browser.run(
        "return document.querySelectorAll(arguments[0]).length", f"{SUMS} [tabindex='0']"
    )
    assert stops == 1
    press(browser, "2")
    assert shown(browser, SUMS) == ["won sums/90"]
    press(browser, "j")
    assert browser.run("return document.activeElement.dataset.outcome") == "won"


@needs_chromium
@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_answer_makes_the_page_scroll_sideways(
    browser: Browser, page: Path, width: int, scheme: str
) -> None:
    browser.open(page, width=width, scheme=scheme)
    assert browser.run("return document.documentElement.scrollWidth") <= width
