"""A choice and a run as Python and a notebook show them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from backtrack import formatting, terminal
from backtrack.records import ROLES
from backtrack.run.directory import Run
from backtrack.selection.choice.select import select
from tests.selection.fakes import FakeEngine, make_recipe, make_run, pair

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_choice_reads_in_one_line_as_a_table_and_as_html(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", make_recipe(trials=0, checkpoints=0))
    given: dict[str, Any] = {"placement": FakeEngine(), "objectives": pair()}
    choice = select(run, weight=0.5, **given)
    base, chosen = (choice.selection.report[name] for name in ("base", "chosen"))
    assert repr(choice).startswith(f"Choice({choice.point} at weight 0.5: target ")
    for role in ROLES:
        before, after = (getattr(row, role).estimate for row in (base, chosen))
        assert f"{role} {before:.1f} -> {after:.1f}" in repr(choice)

    means = [row.scores for row in (base, chosen)]
    lost = {name: 100 * (means[0][name] - means[1][name]) for name in means[0]}
    worst = max(lost, key=lambda name: lost[name])
    ends = " -> ".join(f"{100 * scores[worst]:.1f}" for scores in means)
    assert formatting.lost_most(choice.selection) == f"{worst} lost most: {ends}"
    terminal.print_selection(choice.selection)
    said = " ".join(capsys.readouterr().out.split())
    change = formatting.before_and_after(choice.selection)
    assert f"From the base: {change}; {worst} lost most: {ends}." in said

    frame = choice.to_frame()
    assert len(frame) == len(choice.selection.candidates)
    assert frame[frame.chosen].alpha.tolist() == [choice.point.alpha]
    assert frame.smoothed.tolist() == [c.smoothed for c in choice.selection.candidates]
    assert {o.name for o in choice.selection.objectives} <= set(frame.columns)

    assert "<img" not in choice._repr_html_()
    picture = run.path / "figures" / "plane.png"
    picture.parent.mkdir()
    picture.write_bytes(b"a picture")
    html = choice._repr_html_()
    assert base64.b64encode(b"a picture").decode() in html
    assert html.count("<tr>") == 1 + len(choice.selection.report)

    measured = Run.open(run.path).measurements_frame()
    assert len(measured) == len(run.measurements())
    assert set(measured.split) == {"selection", "report"}
    assert ((measured["mean"] >= 0) & (measured["mean"] <= 1)).all()
    assert repr(run) == f"Run({run.path}: {len(run.steps)} checkpoints, base {run.base.model})"
