"""The page as users see it: in Chromium, by pointer, keyboard and screen reader."""

from __future__ import annotations

import base64
import json
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from backtrack import formatting
from backtrack.cli import main
from backtrack.point import Point
from backtrack.records import ROLES
from backtrack.records.diagnosis import Diagnosis, Drift, ModuleGeometry
from backtrack.records.selection import Constraints, Selection
from backtrack.run.directory import Run
from backtrack.selection.choice.select import select
from tests.report.browser import Browser, needs_chromium
from tests.selection.fakes import (
    FakeEngine,
    Formula,
    as_if_by_recipe,
    make_info,
    make_recipe,
    make_run,
    measured,
    pair,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = needs_chromium

WEIGHTS = [round(0.05 * i, 2) for i in range(21)]
BOUNDS = (
    ["--max-general-drop", "4.5"],
    ["--min-target", "52", "--keep-gain", "0.8"],
    ["--max-general-drop", "30", "--keep-gain", "0.35", "--worst", "prose=50"],
    ["--max-drop", "prose=6.5"],
)
OUT_OF_REACH = ["--min-target", "60", "--max-general-drop", "0.5"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with every point measured, on report items too, so that choosing loads no model."""
    alphas = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    items = {"selection": 150, "report": 150}
    recipe = make_recipe(alphas=alphas, trials=0, checkpoints=2, items=items)
    made = make_run(tmp_path_factory.mktemp("browser") / "a run", recipe)
    logic = Formula(make_info("logic", "general"), lambda x: 0.6 - 0.1 * x, seed=11)
    objectives: Any = (*pair(num_items=400), logic)
    choice = select(
        made,
        weight=0.5,
        constraints=Constraints(max_general_drop=30),
        placement=FakeEngine(),  # type: ignore[arg-type]
        objectives=objectives,
    )
    reported = {m.objective.name: m.item_ids for m in made.measurements() if m.split == "report"}
    for objective in objectives:
        for candidate in choice.selection.candidates:
            ids = reported[objective.info.name]
            made.record(measured(objective, candidate.point, ids, split="report"))
    documents = [
        {"kind": "examples", "path": "nowhere.jsonl", "role": o.info.role, "name": o.info.name}
        for o in objectives
    ]
    as_if_by_recipe(made, recipe.model_dump() | {"objectives": documents})
    return Run.open(made.path)


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The JSON output of a command; None if it fails."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments), "--json"])
    printed = capsys.readouterr().out
    return json.loads(printed) if ended.value.code == 0 else None


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    started = Browser()
    yield started
    started.close()


@pytest.fixture(scope="module")
def drawn(run: Run) -> tuple[Path, Selection]:
    """A copy of the page and its selection; other commands here redraw the run's page."""
    with pytest.raises(SystemExit):
        main(["select", str(run.path), "--weight", "0.5", "--max-general-drop", "30", "--quiet"])
    kept = run.path / "kept.html"
    kept.write_bytes((run.path / "report.html").read_bytes())
    selection = run.selection()
    assert selection is not None
    return kept, selection


@pytest.fixture(scope="module")
def page(drawn: tuple[Path, Selection]) -> Path:
    return drawn[0]


@pytest.fixture(scope="module")
def selection(drawn: tuple[Path, Selection]) -> Selection:
    return drawn[1]


def answer(browser: Browser) -> dict[str, Any]:
    """The answer on the page, and the points marked as chosen and as tied with the best."""
    rows = "#all tbody tr"
    marked = browser.run(
        "return [...document.querySelectorAll(arguments[0])].map((row) => "
        "[row.cells[0].textContent, row.cells[1].textContent])",
        rows,
    )
    return {
        "said": browser.text("#answer"),
        "chosen": [name for name, marks in marked if "chosen" in marks.split()],
        "tied": {name for name, marks in marked if "tied" in marks.split()},
    }


def set_bounds(browser: Browser, options: list[str]) -> None:
    for name, value in zip(options[::2], options[1::2], strict=True):
        bound = name.removeprefix("--").replace("-", "_")
        objective, _, number = value.rpartition("=")
        where = f"[data-objective='{objective}']" if objective else ":not([data-objective])"
        browser.type(f"input[data-bound='{bound}']{where}", number)


def clear_bounds(browser: Browser) -> None:
    browser.run("for (const e of document.querySelectorAll('input[data-bound]')) e.value = ''")
    browser.type("#weight", 50)


def test_the_slider_says_what_the_command_says_at_every_weight_and_bound(
    browser: Browser, page: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    browser.open(page)
    clear_bounds(browser)
    weights = [part for weight in WEIGHTS for part in ("--weight", weight)]
    asked: list[tuple[list[str], Any]] = [([], command(capsys, "select", run.path, *weights))]
    few = ["--weight", "0.3", "--weight", "0.7"]
    asked += [(b, command(capsys, "select", run.path, *few, *b)) for b in BOUNDS]
    seen = set()
    for bounds, selections in asked:
        clear_bounds(browser)
        set_bounds(browser, bounds)
        for selection in selections:
            browser.type("#weight", round(100 * selection["weight"]))
            found = answer(browser)
            chosen = str(Point.model_validate(selection["chosen"]))
            assert found["chosen"] == [chosen], (selection["weight"], bounds)
            said = found["said"]
            assert said.startswith(f"At weight {selection['weight']:g} the choice is {chosen}")
            tied = [c["point"] for c in selection["candidates"] if c["is_tied"]]
            names = {str(Point.model_validate(point)) for point in tied}
            assert found["tied"] == (names if len(names) > 1 else set())
            how = formatting.how_chosen(Selection.model_validate(selection))
            assert how.partition(" rule decided")[0].split()[-1] in said or "rule" not in how
            assert ("rule decided" in said) == ("rule decided" in how)
            seen.add(chosen)
    assert len(seen) >= 4
    assert browser.messages() == []


def test_bounds_that_no_point_meets_are_reported(
    browser: Browser, page: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(capsys, "select", run.path, "--weight", "0.5", *OUT_OF_REACH) is None
    browser.open(page)
    clear_bounds(browser)
    set_bounds(browser, OUT_OF_REACH)
    found = answer(browser)
    assert found["said"].startswith("No measured point meets these bounds")
    assert found["chosen"] == []
    assert found["tied"] == set()
    browser.driver.find_element("id", "as-selected").click()
    assert "the choice is step 40" in browser.text("#answer")


def test_the_page_opens_as_it_was_selected_and_its_command_makes_the_same_choice(
    browser: Browser,
    page: Path,
    selection: Selection,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    browser.open(page)
    said = browser.text("#answer")
    assert str(selection.chosen) in said
    scores = [selection.report[name].target.estimate for name in ("base", "chosen")]
    before, after = (formatting.number(score, "%") for score in scores)
    assert f"target {before} \N{RIGHTWARDS ARROW} {after}, general" in said
    assert "on report items." in said
    assert browser.text("#headline") == selection.verdict
    shown = shlex.split(browser.text("#command"))
    assert shown == [
        *("backtrack", "select", str(run.path), "--weight", "0.5"),
        *("--max-general-drop", "30", "--export", "DIR"),
    ]
    set_bounds(browser, BOUNDS[2])
    browser.type("#weight-number", 0.62)
    assert browser.text("#headline") == browser.text("#answer") != said
    words = shlex.split(browser.text("#command"))[1:-2]
    again = command(capsys, *words)
    assert str(Point.model_validate(again["chosen"])) in browser.text("#answer")
    assert again["weight"] == 0.62


def test_nothing_is_requested_from_the_network_and_the_console_stays_empty(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    for weight in (0, 30, 100):
        browser.type("#weight", weight)
    asked = browser.requests()
    assert asked[0] == page.as_uri()
    assert all(url.startswith(("data:", "blob:")) for url in asked[1:])
    assert browser.messages() == []


def test_the_slider_goes_by_keyboard_and_says_its_answer_to_a_screen_reader(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    slider = browser.driver.find_element("id", "weight")
    slider.send_keys("\ue014", "\ue014")  # twice the right arrow
    assert browser.run("return document.querySelector('#weight-number').value") == "0.52"
    spoken = slider.get_attribute("aria-valuetext")
    assert spoken is not None
    assert spoken.startswith("weight 0.52, At weight 0.52 the choice is")
    assert browser.run("return document.querySelector('#answer').getAttribute('role')") == "status"
    tree = browser.command("Accessibility.getFullAXTree")["nodes"]
    names = {
        node["role"]["value"]: node["name"]["value"]
        for node in tree
        if "name" in node and node.get("role", {}).get("value") in {"slider", "spinbutton"}
    }
    assert names["slider"] == "Weight of the target"
    unnamed = [
        node
        for node in tree
        if node.get("role", {}).get("value") in {"button", "spinbutton", "slider", "image"}
        and not node.get("ignored")
        and not node.get("name", {}).get("value")
    ]
    assert unnamed == []


def test_hovering_a_point_shows_its_coordinates_and_every_objective(
    browser: Browser, page: Path, selection: Selection
) -> None:
    browser.open(page)
    mark = browser.driver.find_element(
        "css selector", "[data-chart=plane] .mark-symbol.role-mark path"
    )
    browser.run("arguments[0].scrollIntoView({block: 'center'})", mark)
    browser.run(
        "const at = arguments[0].getBoundingClientRect();"
        "const where = {bubbles: true, clientX: at.x + at.width / 2, clientY: at.y + 5};"
        "for (const kind of ['pointermove', 'mousemove', 'mouseover'])"
        "  arguments[0].dispatchEvent(new MouseEvent(kind, where));",
        mark,
    )
    browser.until("!document.querySelector('#tooltip').hidden")
    lines = dict(line.split(" ", 1) for line in browser.texts("#tooltip div"))
    assert set(lines) >= {"step", "alpha", "profile", "sums", "prose", "logic", "utility"}
    shown = [c for c in selection.candidates if f"{100 * c.scores['sums']:.1f}%" == lines["sums"]]
    assert any(f"{c.utility:.1f} points" == lines["utility"] for c in shown)


def test_a_click_on_a_head_sorts_the_candidates(browser: Browser, page: Path) -> None:
    browser.open(page)
    head = "#all thead th:nth-child(3)"
    for way, sign in (("descending", -1), ("ascending", 1)):
        browser.run("document.querySelector(arguments[0]).click()", f"{head} button")
        values = [float(text) for text in browser.texts("#all tbody td:nth-child(3)")]
        assert values == sorted(values, key=lambda value: sign * value)
        assert browser.run(f"return document.querySelector('{head}').ariaSort") == way


def test_a_button_copies_its_command(browser: Browser, page: Path) -> None:
    browser.open(page)
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    browser.command("Browser.grantPermissions", permissions=permissions)
    browser.run("document.querySelector('[data-copies=command]').click()")
    browser.until("document.querySelector('[data-copies=command]').textContent !== 'Copy'")
    assert browser.text("[data-copies=command]") == "Copied"


@pytest.mark.parametrize("width", [1200, 380])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_follows_the_theme_and_no_width_scrolls_sideways(
    browser: Browser, page: Path, width: int, scheme: str
) -> None:
    browser.open(page, width=width, scheme=scheme)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    paper, ink = (
        sum(map(int, text.removeprefix("rgb(").removesuffix(")").split(",")))
        for text in browser.run(
            "const text = document.querySelector('[data-chart=plane] svg text');"
            "return [getComputedStyle(document.body).backgroundColor, "
            "getComputedStyle(text).fill]"
        )
    )
    assert (paper > ink) == (scheme == "light")
    small = browser.run(
        "return [...document.querySelectorAll('figure svg')].every((svg) => "
        "svg.getBoundingClientRect().right <= innerWidth)"
    )
    assert small


def test_it_prints_without_its_controls(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.command("Emulation.setEmulatedMedia", media="print")
    hidden = "getComputedStyle(document.querySelector('#controls')).display === 'none'"
    assert browser.run(f"return {hidden}")
    printed = base64.b64decode(browser.command("Page.printToPDF")["data"])
    assert printed[:5] == b"%PDF-"
    browser.command("Emulation.setEmulatedMedia", media="")


def test_a_recorded_diagnosis_is_part_of_the_page(browser: Browser, run: Run) -> None:
    lines = [
        ModuleGeometry(
            point=point, form="attached", curve="native", module=f"layers.{block}.down_proj",
            block=block, part="mlp", shape=(8, 8), update_norm=1.0,
            strength=0.1 * point.alpha * (block + 1),
            drift={
                role: Drift(absolute=1.0, relative=0.1 * block, update_normed=0.2, num_tokens=9)
                for role in ROLES
            },
            setting="s",
        )
        for point in (Point(step=40, alpha=0.5), Point(step=40))
        for block in range(3)
    ]  # fmt: skip
    diagnosis = Diagnosis(
        run="toy", points=tuple({line.point: None for line in lines}),
        path=tuple({line.point: None for line in lines}),
        modules=tuple({line.module: None for line in lines}), locations={}, prompts=(),
        mode="exact", setting="s", seed=0, seconds=1.0, created="2000-01-01T00:00:00+00:00",
    )  # fmt: skip
    (run.path / "diagnosis.json").write_text(diagnosis.model_dump_json())
    (run.path / "diagnosis.jsonl").write_text("".join(f"{x.model_dump_json()}\n" for x in lines))
    with pytest.raises(SystemExit):
        main(["report", str(run.path)])
    for width in (1200, 380):
        browser.open(run.path / "report.html", width=width)
        assert browser.messages() == []
        assert browser.run("return document.documentElement.scrollWidth") <= width
        assert len(browser.texts("figure.geometry svg")) == 2
    assert "Strength and drift of each block" in browser.run(
        "return document.querySelector('#geometry').parentElement.innerHTML"
    )


def test_without_the_table_of_answers_the_page_shows_the_one_selection(
    browser: Browser, run: Run, page: Path
) -> None:
    (run.path / "sweep.json").unlink()
    with pytest.raises(SystemExit):
        main(["report", str(run.path)])
    browser.open(run.path / "report.html")
    assert browser.texts("#controls") == []
    assert len(browser.texts("#all tr.chosen")) == 1
    assert browser.messages() == []
