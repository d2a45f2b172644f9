"""Charts of a selection: orientation, paths, kinds of marks, positions of labels."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from backtrack.report.selection import charts, label_positions
from backtrack.report.selection.drawing import Drawing
from backtrack.report.selection.mark_kinds import (
    BASE,
    CHOSEN,
    OTHER,
    OTHER_CURVES,
    TIED,
    TRAINING,
    legend_kinds,
)


def channels(spec, name) -> list[dict[str, Any]]:
    """Encodings of one channel in all layers and panels."""
    views = itertools.chain.from_iterable(panel["layer"] for panel in spec.get("vconcat", [spec]))
    return [view["encoding"][name] for view in views if name in view["encoding"]]


@pytest.fixture
def drawing(percents) -> Drawing:
    return Drawing(percents)


def test_a_scale_is_reversed_exactly_where_less_is_better(nats):
    spec = charts.plane_spec(Drawing(nats))
    assert all(y["scale"]["reverse"] is True for y in channels(spec, "y"))
    assert all(x["scale"]["reverse"] is False for x in channels(spec, "x"))


def test_a_reversed_axis_says_so_in_its_title(nats):
    titles = [" ".join(y["title"]) for y in channels(charts.plane_spec(Drawing(nats)), "y")]
    assert all("less is better, scale reversed" in title for title in titles)
    titles = [" ".join(x["title"]) for x in channels(charts.plane_spec(Drawing(nats)), "x")]
    assert all("more is better" in title for title in titles)


def test_panels_along_alpha_are_oriented_like_the_plane(nats):
    reverses = {
        y["field"]: y["scale"]["reverse"] for y in channels(charts.alpha_spec(Drawing(nats)), "y")
    }
    assert reverses == {
        "target": False, "target_low": False, "general": True, "general_low": True
    }  # fmt: skip


def test_the_better_point_is_drawn_higher_where_less_is_better(nats):
    found = Drawing(nats)
    area = label_positions.PlotArea(
        found.axis_ends("target"), found.axis_ends("general"), (100, 100)
    )
    generals = [c.general for c in nats.candidates]
    low, high = min(generals), max(generals)
    assert area.pixel(50, low)[1] < area.pixel(50, high)[1]


def test_the_training_path_goes_by_step_from_base_to_final(drawing, percents):
    points = [percents.candidates[i].point for i in drawing.training.ids]
    steps = [point.step for point in points]
    assert steps == sorted(steps)
    assert points[0].is_base
    assert points[-1] == percents.final


def test_the_alpha_path_goes_by_alpha_through_the_final_point(drawing, percents):
    points = [percents.candidates[i].point for i in drawing.curves[0].ids]
    alphas = [point.alpha for point in points]
    assert alphas == sorted(alphas)
    assert alphas[0] == 0
    assert percents.final in points


def test_other_paths_are_drawn_where_they_have_enough_alphas(drawing, percents, made):
    others = drawing.curves[1:]
    assert {curve.kind for curve in others} == {OTHER_CURVES}
    assert [percents.candidates[curve.ids[-1]].point.step for curve in others] == [250]
    few = [p for p in (c.point for c in percents.candidates) if (p.step, p.alpha) != (250, 0.5)]
    assert len(Drawing(made.percents(measured=few)).curves) == 2
    fewer = [p for p in few if (p.step, p.alpha) != (250, 0.3)]
    assert len(Drawing(made.percents(measured=fewer)).curves) == 1


def test_the_front_goes_from_its_poorest_to_its_best_target(drawing, percents):
    found = [percents.candidates[i] for i in drawing.front]
    targets = [c.target for c in found]
    generals = [c.general for c in found]
    assert targets == sorted(targets)
    assert generals == sorted(generals, reverse=True)


def test_every_point_has_one_mark_of_its_own_and_tied_ones_a_ring(drawing, percents):
    own = [row["kind"] for row in drawing.marks()]
    over = [row["kind"] for row in drawing.overlay()]
    assert over.count(TIED) == len(percents.tied)
    assert over.count(CHOSEN) == own.count(BASE) == 1
    known = (BASE, TRAINING, OTHER, OTHER_CURVES)
    assert len([k for k in own if k in known or k.startswith("alpha path")]) == len(own)
    assert len(own) == len(percents.candidates)


def test_curves_and_front_are_drawn_at_the_smoothed_scores_and_marks_at_the_measured(percents):
    banded = tuple(
        c.model_copy(
            update={"target_band": (c.target - 3, c.target + 2), "general_band": (50.0, 60.0)}
        )
        for c in percents.candidates
    )
    drawing = Drawing(percents.model_copy(update={"candidates": banded}))
    found = charts.plane_spec(drawing)["datasets"]
    for name in ("front", "lines"):
        for row in found[name]:
            c = percents.candidates[row["id"]]
            assert (row["target"], row["general"]) == (c.smoothed_target, c.smoothed_general)
    assert all(row["target"] == percents.candidates[row["id"]].target for row in found["marks"])
    assert len(found["front_bands"]) == 2 * len(drawing.front)
    first = percents.candidates[drawing.front[0]]
    assert found["front_bands"][0] == {
        "target": first.target - 3, "target_end": first.target + 2,
        "general": first.smoothed_general, "general_end": first.smoothed_general,
    }  # fmt: skip
    (label,) = found["cross_label"]
    assert label["text"] == "report items"
    assert label["target"] == percents.report["chosen"].target.estimate


def test_objectives_of_one_unit_share_their_scale(nats):
    drawing = Drawing(nats)
    assert drawing.selection.apart_from_role == (1, 2)
    ids = drawing.alpha_ids()
    assert drawing.domain("score_1", ids) == drawing.domain("score_2", ids)
    values = [drawing.value(i, f"score_{n}") or 0.0 for i in ids for n in (1, 2)]
    low, high = drawing.domain("score_1", ids)
    assert low < min(values) < max(values) < high


def test_kinds_differ_by_shape_as_well_as_by_colour(drawing):
    rows = (*drawing.marks(), *drawing.overlay())
    kinds = legend_kinds(drawing.selection, {row["kind"] for row in rows})
    assert len({kind.shape for kind in kinds}) == len(kinds)


def test_the_cross_is_the_report_items_interval_around_its_estimate(percents):
    text = json.dumps(charts.plane_spec(Drawing(percents)))
    row = percents.report["chosen"]
    for value in (row.target.low, row.target.high, row.general.estimate):
        assert re.search(rf"{re.escape(repr(value))}\b", text)


def test_an_objective_that_shares_its_role_has_a_panel_of_its_own(nats, percents):
    found = Drawing(nats)
    assert [found.axis(f"score_{i}")[0] for i in found.selection.apart_from_role] == [
        "wikitext",
        "pile of laws",
    ]
    spec = charts.objective_spec(found, found.selection.apart_from_role[0])
    (title,) = {" ".join(layer["encoding"]["y"]["title"]) for layer in spec["layer"][1:]}
    assert title.startswith("wikitext (nats a token) less is better")
    assert Drawing(percents).selection.apart_from_role == ()


def test_bands_along_alpha_are_the_candidates_intervals_and_lie_inside_the_axis(percents):
    banded = tuple(
        c.model_copy(
            update={
                "target_band": (c.target - 9, c.target + 9),
                "general_band": (c.general - 9, c.general + 9),
            }
        )
        for c in percents.candidates
    )
    drawing = Drawing(percents.model_copy(update={"candidates": banded}))
    spec = charts.alpha_spec(drawing)
    rows = spec["datasets"]["bands"]
    assert len(rows) == sum(len(curve.ids) for curve in drawing.curves)
    last = drawing.candidate(drawing.curves[-1].ids[-1])
    assert (rows[-1]["target_low"], rows[-1]["target_high"]) == last.target_band
    for role, panel in zip(("target", "general"), spec["vconcat"], strict=True):
        low, high = channels(panel, "y")[0]["scale"]["domain"]
        assert low < min(row[f"{role}_low"] for row in rows)
        assert high > max(row[f"{role}_high"] for row in rows)


def test_a_selection_of_an_older_commit_is_drawn_without_bands(percents):
    assert charts.alpha_spec(Drawing(percents))["datasets"]["bands"] == []


def test_one_tied_with_nobody_has_no_ring_in_the_legend(made):
    selection = made.percents(num_tied=1)
    assert TIED not in json.dumps(charts.plane_spec(Drawing(selection)))


def test_labels_of_points_overlap_neither_each_other_nor_the_edge():
    wanted = [
        label_positions.Label(name, (50.0 + 3 * i, 50.0), is_needed=True)
        for i, name in enumerate(("base", "chosen", "final"))
    ]
    size = (200.0, 200.0)
    positions = label_positions.position_labels(
        wanted, [label.anchor for label in wanted], [], size
    )
    spans = []
    for label, position in zip(wanted, positions, strict=True):
        assert position is not None
        width = label_positions.CHARACTER_WIDTH * len(label.text)
        shift = {"left": 0.0, "center": width / 2, "right": width}[position.align]
        rise = {"top": 0.0, "middle": 7.0, "bottom": 14.0}[position.baseline]
        left, top = label.anchor[0] + position.dx - shift, label.anchor[1] + position.dy - rise
        assert left >= 0
        assert left + width <= size[0]
        spans.append((left, top, left + width, top + 14.0))
    for a, b in itertools.combinations(spans, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_minor_label_without_room_is_left_out():
    anchor = (5.0, 5.0)
    wanted = [label_positions.Label("step 100", anchor, is_needed=False)]
    assert label_positions.position_labels(wanted, [anchor], [], (20.0, 20.0)) == (None,)
