"""What the model said is kept beside the scores, within a bound, and compared between points."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zstandard
from peft import LoraConfig
from typer.testing import CliRunner

from backtrack import formatting
from backtrack.cli import app
from backtrack.cli.targets import draw_report
from backtrack.errors import RunError, SelectionError
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.recipe import load_recipe
from backtrack.records.record import short_digest
from backtrack.report.selection.page import MAX_ITEMS
from backtrack.run.directory import Run
from backtrack.selection.choice.select import select
from backtrack.selection.measure import answers as kept
from backtrack.selection.measure.answers import (
    answer_file,
    question_file,
    read_answers,
    read_questions,
)
from backtrack.selection.measure.comparing import compare_ends, compare_points
from backtrack.selection.stats.utility import to_points
from tests.models import make_base, make_peft_run

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.records.selection import Selection

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("study_in_memory"),
]

RECIPE = """\
name: mine
base: {base}
objectives:
  - {{kind: examples, role: target, path: {folder}/sums.jsonl, max_new_tokens: 3}}
  - {{kind: examples, role: general, path: {folder}/picks.jsonl, score: choice, name: picks}}
  - {{kind: examples, role: general, path: {folder}/sums.jsonl, score: nll, name: loss}}
search: {{trials: 0, checkpoints: 0, alphas: [0.5], items: {{selection: 8, report: 8}}{more}}}
"""


def make(folder: Path, more: str = "") -> tuple[Run, Any]:
    """A run of a random model, and a recipe over written answers, choices and losses."""
    base = make_base(folder / "base")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
    run = make_peft_run(folder / "runs" / "mine", base, config)
    sums = [{"prompt": f"{i} plus 1 is", "completion": f" {i + 1}"} for i in range(20)]
    picks = [
        {"prompt": f"pick {i}:", "completion": " cat", "choices": ["cat", "dog", "hat"]}
        for i in range(20)
    ]
    for name, rows in (("sums", sums), ("picks", picks)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(base=base, folder=folder, more=more))
    return run, load_recipe(path)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Selection]:
    run, recipe = make(tmp_path_factory.mktemp("answers"))
    return run, select(run, recipe=recipe).selection


def test_every_score_has_the_answer_it_was_given_for(chosen: tuple[Run, Selection]) -> None:
    run, _ = chosen
    for m in run.measurements():
        answers, questions = read_answers(run, [m]), read_questions(run, m.objective)
        assert set(answers) == set(m.item_ids)
        for item, score in zip(m.item_ids, m.scores, strict=True):
            answer, question = answers[item], questions[item]
            if m.objective.name == "sums":
                (text,) = answer.texts
                assert score == float(text.strip() == question.gold)
            elif m.objective.name == "picks":
                assert answer.choice is not None
                picked = question.choices[answer.choice]
                assert score == float(picked.strip() == question.gold)
            else:
                assert answer.likelihoods[0] < 0


def test_what_is_compared_adds_up_to_the_scores(chosen: tuple[Run, Selection]) -> None:
    run, selection = chosen
    points = [selection.base, selection.final]
    found = compare_points(run, selection, points).objectives
    assert [each.change for each in found] == sorted(each.change for each in found)
    for each in found:
        sign = -1 if each.objective == "loss" else 1
        moved = sum(i.scores[1] - i.scores[0] for i in (*each.lost, *each.won))
        assert moved / each.num_items == pytest.approx(each.means[1] - each.means[0])
        assert all(sign * i.scores[1] < sign * i.scores[0] for i in each.lost)
        assert all(sign * i.scores[1] > sign * i.scores[0] for i in each.won)
        assert all(None not in i.answers and i.question for i in (*each.lost, *each.won))
        assert (each.num_lost, each.num_won) == (len(each.lost), len(each.won))
        assert each.split == "report"
        yardstick = selection.yardsticks[each.objective]
        scored = np.array([i.scores[:2] for i in (*each.lost, *each.won)]).reshape(-1, 2)
        gained = to_points(scored, yardstick) @ [-1, 1]
        assert gained.sum() / each.num_items == pytest.approx(each.change)
    (loss,) = [each for each in found if each.objective == "loss"]
    assert loss.num_lost + loss.num_won == loss.num_items
    assert loss.num_both_wrong == 0
    cut = {e.objective: e for e in compare_points(run, selection, points, 1).objectives}
    assert (cut["loss"].num_lost, cut["loss"].lost) == (loss.num_lost, loss.lost[:1])
    for each in found:
        assert cut[each.objective].both_wrong == each.both_wrong[:1]
        assert each.num_both_wrong == len(each.both_wrong)
        assert all(max(i.scores) == 0 for i in each.both_wrong)
    assert sum(each.num_both_wrong for each in found) > 0


def test_a_point_that_was_not_measured_is_named(chosen: tuple[Run, Selection]) -> None:
    run, selection = chosen
    with pytest.raises(SelectionError, match=r"step 10 alpha 0\.37 was not measured on"):
        compare_points(run, selection, [Point.base(), Point(step=10, alpha=0.37)])


def test_the_command_needs_no_model(
    chosen: tuple[Run, Selection], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = chosen
    monkeypatch.setattr(Placement, "__init__", lambda *_, **__: pytest.fail("loaded a model"))
    shown = CliRunner().invoke(app, ["compare", str(run.path), "base", "final", "--items", "1"])
    assert shown.exit_code == 0, shown.output
    assert "loss (general, nats a token): base" in shown.output
    assert "plus 1 is" in shown.output
    done = CliRunner().invoke(app, ["compare", str(run.path), "base", "1", "--json"])
    named = json.loads(done.stdout)
    assert named["points"] == ["base", "step 20 alpha 1"]
    assert {each["objective"] for each in named["objectives"]} == {"sums", "picks", "loss"}


def test_no_more_than_the_bound_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, recipe = make(tmp_path, ", max_answer_bytes: 1500")
    with caplog.at_level(logging.WARNING):
        selection = select(run, recipe=recipe).selection
    assert sum(path.stat().st_size for path in (run.path / "answers").iterdir()) <= 1500
    assert [r.message for r in caplog.records if "max_answer_bytes" in r.message]
    found = compare_points(run, selection, [selection.base, selection.final]).objectives
    assert any(None in item.answers for each in found for item in (*each.lost, *each.won))


def test_the_page_shows_what_was_said_and_is_drawn_without_where_it_is_damaged(
    chosen: tuple[Run, Selection], caplog: pytest.LogCaptureFixture
) -> None:
    run, selection = chosen
    page = draw_report(run, selection).read_text()
    assert "Won and lost" in page
    assert "plus 1 is" in page
    assert page.count("<article") <= MAX_ITEMS
    path = question_file(run.path / kept.FOLDER, selection.objectives[0])
    content = path.read_bytes()
    try:
        path.write_bytes(b"not compressed")
        with caplog.at_level(logging.WARNING):
            assert compare_ends(run, selection, MAX_ITEMS) is None
    finally:
        path.write_bytes(content)
    assert [r.message for r in caplog.records if "is damaged" in r.message]


def test_control_characters_are_written_out_and_line_breaks_stay() -> None:
    hostile = "\x1b]0;owned\x07 \u202eright\x9b2J\ud800\n\tkept \u200d"
    shown = r"\x1b]0;owned\x07 \u202eright\x9b2J\ud800" + "\n\tkept \u200d"
    assert formatting.visible(hostile) == shown


def test_the_answers_of_a_point_are_one_file(chosen: tuple[Run, Selection]) -> None:
    run, _ = chosen
    points = {m.point.canonical for m in run.measurements()}
    names = [path.name for path in (run.path / kept.FOLDER).iterdir()]
    questions = [name for name in names if name.startswith("questions-")]
    assert len(names) - len(questions) == len(points) < len(run.measurements())


def test_answers_of_an_earlier_version_are_read(chosen: tuple[Run, Selection]) -> None:
    """A file a measurement, named by its digest."""
    run, _ = chosen
    (m, *others) = run.measurements()
    path = answer_file(run.path / kept.FOLDER, m)
    content, known = path.read_bytes(), read_answers(run, [m])
    values = {item_id: answer.model_dump() for item_id, answer in known.items()}
    point = m.point.canonical.model_dump()
    key = short_digest(point, m.checkpoint, m.setting, m.objective.name, m.split, m.item_ids)
    old = run.path / kept.FOLDER / f"{key}.json.zst"
    try:
        lines = content.split(b"\n")
        path.write_bytes(b"\n".join(line for line in lines if key.encode() not in line))
        assert read_answers(run, [m]) == {}
        old.write_bytes(zstandard.compress(json.dumps(values).encode()))
        assert read_answers(run, [m]) == known
        same = next(o for o in others if answer_file(run.path / kept.FOLDER, o) == path)
        assert set(read_answers(run, [m, same])) == {*m.item_ids, *same.item_ids}
    finally:
        path.write_bytes(content)
        old.unlink()


@pytest.mark.parametrize("payload", ["?", "bm90IGNvbXByZXNzZWQ="], ids=["no text", "not packed"])
def test_damaged_answers_are_named_and_cost_no_score(
    chosen: tuple[Run, Selection], payload: str
) -> None:
    run, _ = chosen
    (m, *_) = run.measurements()
    path = answer_file(run.path / kept.FOLDER, m)
    content = path.read_bytes()
    try:
        first = json.loads(content.split(b"\n")[0]) | {"answers": payload}
        path.write_text(json.dumps(first) + "\n")
        with pytest.raises(RunError, match=r"is damaged.*no score depends on it"):
            read_answers(run, [m])
        path.write_bytes(content[: content.index(b"\n") // 2])
        assert read_answers(run, [m]) == {}, "a line that was cut off was never written"
    finally:
        path.write_bytes(content)
    assert Run.open(run.path).measurements()
