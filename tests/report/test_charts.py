"""The drawings: orientation, paths, kinds of marks, names that cover nothing."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from backtrack.point import Point
from backtrack.report import charts, labels
from backtrack.report.rows import BASE, CHOSEN, OTHER, TIED, TRAINING, Drawing


def channels(spec, name) -> list[dict[str, Any]]:
    """Encodings of one channel in all layers and panels."""
    views = itertools.chain.from_iterable(panel["layer"] for panel in spec.get("vconcat", [spec]))
    return [view["encoding"][name] for view in views if name in view["encoding"]]


@pytest.fixture
def drawing(percents) -> Drawing:
    return Drawing(percents)


def test_a_scale_is_reversed_exactly_where_less_is_better(nats):
    spec = charts.plane_spec(nats)
    assert all(y["scale"]["reverse"] is True for y in channels(spec, "y"))
    assert all(x["scale"]["reverse"] is False for x in channels(spec, "x"))


def test_a_reversed_axis_says_so_in_its_title(nats):
    titles = [" ".join(y["title"]) for y in channels(charts.plane_spec(nats), "y")]
    assert all("less is better, scale reversed" in title for title in titles)
    titles = [" ".join(x["title"]) for x in channels(charts.plane_spec(nats), "x")]
    assert all("more is better" in title for title in titles)


def test_panels_along_alpha_are_oriented_like_the_plane(nats):
    reverses = {y["field"]: y["scale"]["reverse"] for y in channels(charts.alpha_spec(nats), "y")}
    assert reverses == {"target": False, "general": True}


def test_the_better_point_is_drawn_higher_where_less_is_better(nats):
    found = Drawing(nats)
    frame = labels.Frame(found.ends("target"), found.ends("general"), (100, 100))
    low, high = (pick(c.general for c in found.candidates) for pick in (min, max))
    assert frame.spot(50, low)[1] < frame.spot(50, high)[1]


def test_the_training_path_goes_by_step_from_base_to_final(drawing, percents):
    steps = [c.point.step for c in drawing.training]
    assert steps == sorted(steps)
    assert drawing.training[0].point.is_base
    assert drawing.training[-1].point == percents.final


def test_the_alpha_path_goes_by_alpha_through_the_final_point(drawing, percents):
    (curve,) = drawing.curves
    alphas = [c.point.alpha for c in curve.candidates]
    assert alphas == sorted(alphas)
    assert alphas[0] == 0
    assert percents.final in [c.point for c in curve.candidates]


def test_the_chosen_steps_curve_is_drawn_where_it_has_enough_alphas(made):
    enough = Drawing(made.percents(chosen=Point(step=250, alpha=0.5)))
    assert [c.kind.name for c in enough.curves] == [
        "alpha path to step 400",
        "alpha path to step 250",
    ]
    assert len(Drawing(made.percents(chosen=Point(step=100))).curves) == 1


def test_the_front_goes_from_its_poorest_to_its_best_target(drawing):
    targets = [c.target for c in drawing.front]
    generals = [c.general for c in drawing.front]
    assert targets == sorted(targets)
    assert generals == sorted(generals, reverse=True)


def test_every_point_has_one_mark_of_its_own_and_tied_ones_a_ring(drawing, percents):
    kinds = [row["kind"] for row in drawing.marks()]
    assert kinds.count(TIED) == len(percents.tied)
    assert kinds.count(CHOSEN) == kinds.count(BASE) == 1
    own = [k for k in kinds if k in (BASE, TRAINING, OTHER) or k.startswith("alpha path")]
    assert len(own) == len(percents.candidates)


def test_kinds_differ_by_shape_as_well_as_by_colour(drawing):
    kinds = drawing.kinds({row["kind"] for row in drawing.marks()})
    assert len({kind.shape for kind in kinds}) == len(kinds)


def test_the_cross_is_the_report_items_interval_around_its_reading(percents):
    text = json.dumps(charts.plane_spec(percents))
    reading = percents.report["chosen"]
    for value in (reading.target.low, reading.target.high, reading.general.estimate):
        assert re.search(rf"{re.escape(repr(value))}\b", text)


def test_a_tooltip_gives_every_objective(nats, percents):
    several = dict(Drawing(nats).tooltip())
    assert {"wikitext", "pile of laws", "target (gsm8k)"} <= set(several.values())
    assert "general (mmlu)" in dict(Drawing(percents).tooltip()).values()


def test_one_tied_with_nobody_has_no_ring_in_the_legend(made):
    selection = made.percents(num_tied=0)
    assert TIED not in json.dumps(charts.plane_spec(selection))


def test_names_of_points_cover_neither_each_other_nor_the_frame():
    wanted = [
        labels.Label(name, (50.0 + 3 * i, 50.0), is_needed=True)
        for i, name in enumerate(("base", "chosen", "final"))
    ]
    size = (200.0, 200.0)
    places = labels.place(wanted, [label.anchor for label in wanted], [], size)
    spans = []
    for label, place in zip(wanted, places, strict=True):
        assert place is not None
        width = labels.CHARACTER_WIDTH * len(label.text)
        shift = {"left": 0.0, "center": width / 2, "right": width}[place.align]
        rise = {"top": 0.0, "middle": 7.0, "bottom": 14.0}[place.baseline]
        left, top = label.anchor[0] + place.dx - shift, label.anchor[1] + place.dy - rise
        assert left >= 0
        assert left + width <= size[0]
        spans.append((left, top, left + width, top + 14.0))
    for a, b in itertools.combinations(spans, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_minor_name_without_room_is_left_out():
    anchor = (5.0, 5.0)
    wanted = [labels.Label("step 100", anchor, is_needed=False)]
    assert labels.place(wanted, [anchor], [], (20.0, 20.0)) == (None,)
