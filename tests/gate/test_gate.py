"""Outcomes, looks and roles of a gate over sides of known scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from backtrack.errors import UsageError
from backtrack.gate import gate
from backtrack.gate.sides import ItemScores, RecordedScores, RecordedSide
from backtrack.records.gate import GateBound


def bound(text: str, kind: str = "max_drop") -> GateBound:
    name, _, number = text.partition("=")
    is_role = name in ("target", "general")
    return GateBound.model_validate(
        {"kind": kind, "name": name, "number": float(number), "is_role": is_role}
    )


def right(rate: float, num: int) -> list[float]:
    """Answers of which a share is right, spread evenly."""
    return [float(math.floor((i + 1) * rate) > math.floor(i * rate)) for i in range(num)]


class Counted(RecordedScores):
    """Scores that are measured when asked for; counts the items."""

    is_recorded = False

    def scores(self, item_ids):
        self.asked_for = [*getattr(self, "asked_for", []), *item_ids]
        return super().scores(item_ids)


def measured(side: RecordedSide) -> RecordedSide:
    """The side as one that must measure its scores."""
    objectives: dict[str, ItemScores] = {
        name: Counted(each.info, dict(zip(each.item_ids, each.scores(each.item_ids), strict=True)))
        for name, each in side.objectives.items()
    }
    return RecordedSide(side.name, objectives)


def test_no_loss_passes_a_large_loss_fails_and_few_items_cannot_tell(make_side) -> None:
    incumbent = make_side("old", {"nq": right(0.6, 1000)})
    for scores, outcome in ((right(0.6, 1000), "passes"), (right(0.3, 1000), "fails")):
        found = gate(make_side("new", {"nq": scores}), incumbent, [bound("nq=5")])
        assert (found.outcome, found.bounds[0].items_to_decide) == (outcome, None)
    few = (make_side("new", {"nq": right(0.5, 20)}), make_side("old", {"nq": right(0.6, 20)}))
    found = gate(*few, [bound("nq=5")])
    assert found.outcome == "undecided"
    assert (found.bounds[0].items_to_decide or 0) > 20


def test_a_minimal_gain_must_be_shown(make_side) -> None:
    sides = (
        make_side("new", {"math": right(0.7, 800)}),
        make_side("old", {"math": right(0.5, 800)}),
    )
    for least, outcome in ((5, "passes"), (20, "undecided"), (40, "fails")):
        assert gate(*sides, [bound(f"math={least}", "min_gain")]).outcome == outcome


def test_less_of_a_loss_is_a_gain_in_its_own_unit(make_side) -> None:
    given = {"unit": "nats a token", "direction": "minimize"}
    noise = np.random.default_rng(0).normal(0, 0.1, 300)
    new, old = (
        make_side(n, {"prose": m + noise}, **given) for n, m in (("new", 2.0), ("old", 2.3))
    )
    found = gate(new, old, [bound("prose=0.2", "min_gain")])
    assert found.outcome == "passes"
    assert found.bounds[0].unit == "nats a token"
    assert found.bounds[0].gain.estimate == pytest.approx(0.3)
    assert gate(old, new, [bound("prose=0.2")]).outcome == "fails"


def test_a_role_is_the_weighted_mean_of_its_objectives(make_side) -> None:
    new = make_side("new", {"a": right(0.5, 600), "b": right(0.9, 600)})
    old = make_side("old", {"a": right(0.6, 600), "b": right(0.9, 600)})
    found = gate(new, old, [bound("general=8")]).bounds[0]
    assert (found.outcome, found.unit) == ("passes", "points")
    assert found.gain.estimate == pytest.approx(-5.0)
    assert (found.candidate, found.incumbent) == pytest.approx((70.0, 75.0))
    with pytest.raises(UsageError, match="no objective has that role"):
        gate(new, old, [bound("target=8")])


def test_clear_cases_end_at_an_eighth_of_the_items_and_recorded_scores_need_one_look(
    make_side,
) -> None:
    old = make_side("old", {"nq": right(0.6, 1600)})
    for rate, outcome in ((0.6, "passes"), (0.2, "fails")):
        new = make_side("new", {"nq": right(rate, 1600)})
        found = gate(measured(new), old, [bound("nq=5")])
        assert (found.outcome, found.num_looks, found.items_compared) == (outcome, 1, 208)
        whole = gate(new, old, [bound("nq=5")])
        assert (whole.outcome, whole.num_looks, whole.items_compared) == (outcome, 1, 1600)


def test_an_item_is_measured_once_and_only_where_a_bound_is_open(make_side) -> None:
    scores = {"clear": right(0.6, 1600), "close": right(0.6, 1600)}
    old = make_side("old", scores)
    new = measured(make_side("new", scores | {"close": right(0.55, 1600)}))
    found = gate(new, old, [bound("clear=5"), bound("close=5")])
    clear, close = (new.objectives[name] for name in scores)
    assert isinstance(clear, Counted) and isinstance(close, Counted)  # noqa: PT018
    assert [each.num_items for each in found.bounds] == [208, 1600]
    assert len(clear.asked_for) == 208
    assert len(close.asked_for) == len(set(close.asked_for)) == 1600
    assert found.items_compared == 1808
    assert found.outcome == "undecided"


def test_a_bound_that_fails_ends_the_gate_at_once(make_side) -> None:
    old = make_side("old", {"lost": right(0.6, 800), "close": right(0.6, 800)})
    new = measured(make_side("new", {"lost": right(0.1, 800), "close": right(0.55, 800)}))
    found = gate(new, old, [bound("lost=5"), bound("close=5")])
    assert (found.outcome, found.num_looks) == ("fails", 1)
    assert [each.outcome for each in found.bounds] == ["fails", "undecided"]


def test_objectives_of_few_items_end_before_others(make_side) -> None:
    scores = {"few": right(0.6, 12), "many": right(0.6, 800)}
    new = measured(make_side("new", scores | {"many": right(0.56, 800)}))
    found = gate(new, make_side("old", scores), [bound("few=5"), bound("many=5")])
    assert [each.num_items for each in found.bounds] == [12, 800]


def test_bounds_share_the_chance_of_error(make_side) -> None:
    old, new = (make_side(n, {"a": right(r, 900), "b": right(r, 900)})
                for n, r in (("old", 0.6), ("new", 0.57)))  # fmt: skip
    alone = gate(new, old, [bound("a=5")]).bounds[0].gain
    shared = gate(new, old, [bound("a=5"), bound("b=5")]).bounds[0].gain
    assert shared.low < alone.low < alone.high < shared.high
    loose = gate(new, old, [bound("a=5")], confidence=0.8).bounds[0].gain
    assert alone.low < loose.low


def test_the_order_of_items_follows_the_seed_alone(make_side) -> None:
    old = make_side("old", {"nq": right(0.6, 400)})
    asked = []
    for seed in (0, 0, 1):
        new = measured(make_side("new", {"nq": right(0.6, 400)}))
        gate(new, old, [bound("nq=20")], seed=seed)
        scores = new.objectives["nq"]
        assert isinstance(scores, Counted)
        asked.append(scores.asked_for)
    assert asked[0] == asked[1] != asked[2]


def test_nothing_bounded_and_an_impossible_confidence_are_refused(make_side) -> None:
    side = make_side("a", {"nq": right(0.6, 40)})
    with pytest.raises(UsageError, match="nothing is bounded"):
        gate(side, side, [])
    with pytest.raises(UsageError, match="it lies between"):
        gate(side, side, [bound("nq=1")], confidence=1.0)
