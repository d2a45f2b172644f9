"""The terminal's tables of a selection, at 80 columns."""

from __future__ import annotations

from backtrack import formatting, terminal
from backtrack.point import Point


def printed(capsys, selection) -> list[str]:
    """The lines of the table of points that name a point."""
    terminal.print_candidates(selection)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(" step")]


def test_points_that_miss_a_bound_come_last_and_each_is_on_one_line(capsys, made):
    lines = printed(capsys, made.percents())
    missed = ["misses a bound" in line for line in lines]
    assert missed == sorted(missed)
    assert all(" alpha " in line and len(line) <= 80 for line in lines)


def test_the_chosen_point_is_shown_wherever_it_stands(capsys, made):
    chosen = Point(step=400, alpha=1.2)
    lines = printed(capsys, made.percents(chosen=chosen))
    assert len(lines) == 13
    assert str(chosen) in lines[-1]
    assert "chosen" in lines[-1]


def test_one_is_marked_as_tied_only_beside_others(made):
    for num_tied in (1, 2):
        selection = made.percents(num_tied=num_tied)
        marks = [formatting.point_marks(selection, c) for c in selection.candidates]
        assert sum("tied" in each for each in marks) == (num_tied if num_tied > 1 else 0)


def test_the_part_of_the_rule_that_decided_is_named(made):
    top = max(made.percents().candidates, key=lambda c: c.smoothed)
    nearest = Point(step=top.point.step, alpha=0.5)
    said = {p: formatting.how_chosen(made.percents(chosen=p)) for p in (top.point, nearest)}
    assert said[top.point] == "The choice is the point of highest smoothed utility."
    assert f"The quarter-point rule decided: {top.point} has the highest" in said[nearest]
    base = formatting.how_chosen(made.percents(chosen=Point.base()))
    assert f"The base rule decided: {top.point}, of highest smoothed utility, leads the" in base
    assert "caution" in formatting.how_chosen(made.percents(is_cautious=True))
