"""An arena's page in Chromium: switching entrants, sorting tables, no requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backtrack.point import Point
from backtrack.records import Axis, BaseModelReference, Interval, Method
from backtrack.records.arena import Arena, ArenaPoint, Entrant, RankingRow
from backtrack.report.arena.page import write_arena_page
from tests.report.browser import Browser, needs_chromium

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BREAKOUT = "</script><script>alert(1)</script>"
PERCENT = Axis(unit="%", direction="maximize")
NAMES = ("lora", "oft", "full")


def around(value: float) -> Interval:
    return Interval(estimate=value, low=value - 2, high=value + 2)


def make_entrant(name: str, seed: int, shift: int) -> Entrant:
    alphas = [Point(step=40, alpha=a) for a in (0.25, 0.5, 0.75, 1.0)]
    points = [Point.base(), Point(step=20), *alphas]
    return Entrant(
        name=name,
        seed=seed,
        paradigm="sft",
        method=Method(kind=name),
        run=f"{name}-{seed}",
        state="measured",
        points=tuple(
            ArenaPoint(
                point=point,
                target=10 + 50 * point.alpha * point.step / 40 + shift,
                general=90 - 30 * (point.alpha * point.step / 40) ** 2 - shift,
                is_checkpoint=point.alpha == 1,
                is_on_front=point.step == 40,
            )
            for point in points
        ),
        chosen=Point(step=40, alpha=0.5),
        final=Point(step=40),
    )


@pytest.fixture
def arena() -> Arena:
    broken = Entrant(
        name="dora", paradigm="sft", method=Method(kind="dora"), run="dora", state="failed",
        failure=BREAKOUT,
    )  # fmt: skip
    return Arena(
        name="small",
        base=BaseModelReference(model="tiny"),
        weight=0.5,
        axes={"target": PERCENT, "general": PERCENT},
        entrants=(*(make_entrant(n, s, i) for i, n in enumerate(NAMES) for s in (0, 1)), broken),
        ranking=tuple(
            RankingRow(
                name=name,
                seeds=(0, 1),
                num_trainable=10 ** (3 + i),
                final_target=around(60 + i),
                final_general=around(60 - i),
                chosen_target=around(55 - i),
                chosen_general=around(80 + i),
                gain=around(7 - 3 * i),
                hypervolume=around(0.5 + i / 10),
            )
            for i, name in enumerate(NAMES)
        ),
        level=0.95,
        created="2000-01-01T00:00:00+00:00",
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    started = Browser()
    yield started
    started.close()


def test_the_page_is_escaped_and_requests_nothing(tmp_path: Path, arena: Arena) -> None:
    text = write_arena_page(tmp_path, arena).read_text("utf-8")
    assert BREAKOUT not in text
    assert "connect-src" not in text
    assert "default-src 'none'" in text


@needs_chromium
def test_entrants_are_switched_off_and_on(tmp_path: Path, arena: Arena, browser: Browser) -> None:
    browser.open(write_arena_page(tmp_path, arena))
    marks = "[data-chart=frontiers] .mark-symbol.role-mark path"
    every = len(browser.texts(marks))
    browser.run("document.querySelector('#entrants input[value=oft]').click()")
    assert len(browser.texts(marks)) == pytest.approx(every * 2 / 3)
    assert len(browser.texts("tr.infeasible[data-entrant=oft]")) == 2
    browser.run("document.querySelector('#all-or-none').click()")
    assert browser.texts(marks) == []
    browser.run("document.querySelector('#all-or-none').click()")
    assert len(browser.texts(marks)) == every
    assert browser.messages() == []
    assert [u for u in browser.requests()[1:] if not u.startswith(("data:", "blob:"))] == []


@needs_chromium
@pytest.mark.parametrize("width", [1200, 380])
def test_tables_sort_by_their_heads_at_any_width(
    tmp_path: Path, arena: Arena, browser: Browser, width: int
) -> None:
    browser.open(write_arena_page(tmp_path, arena), width=width, scheme="dark")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    gain = "#table-ranking tbody td:nth-child(5)"
    button = "#table-ranking thead th:nth-child(5) button"
    for sign in (-1, 1):
        browser.run("document.querySelector(arguments[0]).click()", button)
        texts = [text.split(" ")[0].replace("\N{MINUS SIGN}", "-") for text in browser.texts(gain)]
        values = [float(text) for text in texts]
        assert values == sorted(values, key=lambda value: sign * value)
