"""The page: complete, self-contained, escaped, and drawn without torch."""

from __future__ import annotations

import html
import json
import math
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from backtrack.errors import RunError
from backtrack.point import Point
from backtrack.records.selection import Baseline, BaselineRow, Constraints
from backtrack.report.selection.page import write_report

BREAKOUT = "</script><script>alert(1)</script>"
MAX_PAGE_BYTES = 3_000_000
PICTURE_SCALE = 2


class Elements(HTMLParser):
    """Tags with attributes, text outside scripts and styles, each table row and its headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[str] = []
        self.heads: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self._is_head = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "tr":
            self.rows.append("")
            self.heads.append("")
        if tag == "th":
            self._is_head = True
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""
        if tag == "th":
            self._is_head = False

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data
            if self.rows:
                self.rows[-1] += f" {data.strip()}"
            if self._is_head and self.rows:
                self.heads[-1] += data


def write(folder, made, selection) -> Path:
    return write_report(folder, selection, made.measurements(selection), made.entries())


@pytest.fixture(scope="module")
def written(tmp_path_factory, made, percents) -> Path:
    return write(tmp_path_factory.mktemp("run"), made, percents)


@pytest.fixture(scope="module")
def page(written) -> Elements:
    return Elements(written.read_text("utf-8"))


def test_the_page_asks_for_nothing_from_elsewhere(page, written):
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert not re.match(r"(https?:)?//", attributes.get(name) or "")
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "connect-src" not in policy
    assert "@import" not in written.read_text("utf-8")
    assert "fetch(" not in page.scripts[-1]


def test_the_page_is_small_enough_to_send(written):
    assert written.stat().st_size < MAX_PAGE_BYTES


def test_the_page_says_the_verdict_first_and_then_the_choice(page, percents):
    assert page.text.index(percents.verdict) < page.text.index("Before and after")
    assert f"Chosen {percents.chosen}" in page.heads
    assert "backtrack export" in page.text
    assert percents.command in page.text
    assert all(note in page.text for note in percents.notes)


def test_every_candidate_has_a_row_and_the_highest_utility_is_first(page, percents):
    points = [str(c.point) for c in sorted(percents.candidates, key=lambda c: -c.utility)]
    start = next(i for i, row in enumerate(page.rows) if "Origin" in row) + 1
    assert page.heads[start : start + len(points)] == points


def test_every_table_has_a_caption_and_scoped_heads(page):
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") > 0
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


def test_pictures_have_the_drawing_at_double_scale(written):
    for name, least in (("plane", (720, 440)), ("alpha", (720, 380))):
        content = (written.parent / "figures" / f"{name}.png").read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        size = struct.unpack(">II", content[16:24])
        assert all(
            PICTURE_SCALE * low < got < PICTURE_SCALE * 1.5 * low
            for got, low in zip(size, least, strict=True)
        )


def test_text_from_records_breaks_out_of_neither_markup_nor_scripts(
    tmp_path, made, page, percents
):
    renamed = tuple(
        o.model_copy(update={"name": f"{o.name}{BREAKOUT}"}) for o in percents.objectives
    )
    hostile = made.percents(
        run=BREAKOUT, verdict=BREAKOUT, notes=(BREAKOUT,), command=BREAKOUT, objectives=renamed
    )
    text = write(tmp_path, made, hostile).read_text("utf-8")
    elements = Elements(text)
    assert len(elements.scripts) == len(page.scripts)
    assert BREAKOUT not in text
    assert html.escape(BREAKOUT) in text
    payload = json.loads(elements.scripts[0])
    assert payload["objectives"][0]["name"] == f"gsm8k{BREAKOUT}"


@pytest.mark.parametrize(
    "case",
    [
        {"chosen": Point.base()},
        {"measured": [Point.base(), Point(step=50)]},
        {"num_tied": 0},
        {"chosen": Point(step=250, alpha=0.5)},
        {"chosen": Point(step=400, alpha=0.6, profile="safe")},
        {"notes": (), "command": ""},
    ],
    ids=["base is chosen", "one step", "none tied", "other step", "other profile", "no notes"],
)
def test_unusual_selections_are_drawn_without_gaps(tmp_path, made, case):
    selection = made.percents(**case)
    elements = Elements(write(tmp_path, made, selection).read_text("utf-8"))
    assert str(selection.chosen) in elements.text
    for said in ("nan", "inf", "None", "Undefined"):
        assert not re.search(rf"(?<![\w-]){said}(?![\w-])", elements.text)


def test_scores_that_are_no_numbers_are_dashes_and_leave_the_drawing(tmp_path, made, percents):
    broken = percents.candidates[-1].model_copy(update={"target": math.nan, "utility": math.nan})
    selection = percents.model_copy(update={"candidates": (*percents.candidates[:-1], broken)})
    elements = Elements(write(tmp_path, made, selection).read_text("utf-8"))
    assert not re.search(r"\bnan\b", elements.text, re.IGNORECASE)
    assert any(str(broken.point) in row and "\N{EN DASH}" in row for row in elements.rows)
    assert "NaN" not in elements.scripts[0]
    assert json.loads(elements.scripts[0])["candidates"]["target"][-1] is None


def test_all_bounds_are_listed_and_a_baseline_that_misses_one_is_marked(tmp_path, made, nats):
    bounds = {"max_general_drop": 5, "objectives": {"wikitext": {"max_drop": 0.1, "worst": 2}}}
    interval = nats.report["base"].utility
    missing = BaselineRow(
        baseline=Baseline(kind="checkpoint", point=Point(step=50)), scores={}, target=interval,
        general=interval, utility=interval, difference=interval, misses=("max_general_drop",),
    )  # fmt: skip
    given = {"constraints": Constraints.model_validate(bounds), "baselines": (missing,)}
    page = write(tmp_path, made, nats.model_copy(update=given))
    elements = Elements(page.read_text("utf-8"))
    assert "general at most 5.0 points below the base" in elements.text
    assert "wikitext at most 0.1000 nats a token above the base" in elements.text
    assert "wikitext at most 2.000 nats a token" in elements.text
    (row,) = [row for row in elements.rows if "best checkpoint: step 50" in row]
    assert "misses max_general_drop" in row


def test_losses_are_written_in_their_own_unit(tmp_path, made, nats):
    text = Elements(write(tmp_path, made, nats).read_text("utf-8")).text
    assert "General (nats a token)" in text
    assert "pile of laws (nats a token)" in text


def test_a_second_report_replaces_the_first_and_leaves_nothing_partial(tmp_path, made, percents):
    write(tmp_path, made, percents)
    page = write(tmp_path, made, made.percents(verdict="Another verdict."))
    assert "Another verdict." in page.read_text("utf-8")
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {"report.html", "figures/plane.png", "figures/alpha.png"}


def test_a_directory_that_takes_no_files_is_one_clear_error(tmp_path, made, percents):
    (tmp_path / "figures").write_text("in the way")
    with pytest.raises(RunError, match="could not be written"):
        write(tmp_path, made, percents)
    assert not (tmp_path / "report.html").exists()


def test_a_report_is_drawn_from_files_without_torch_or_optuna(tmp_path, percents):
    record = tmp_path / "selection.json"
    record.write_text(percents.model_dump_json())
    code = (
        "import sys; from pathlib import Path; from backtrack.records.selection import Selection\n"
        "from backtrack.report.selection.page import write_report\n"
        "folder = Path(sys.argv[1])\n"
        "selection = Selection.model_validate_json((folder / 'selection.json').read_text())\n"
        "write_report(folder, selection, (), ())\n"
        "print([m for m in ('torch', 'optuna', 'transformers') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "report.html").is_file()
