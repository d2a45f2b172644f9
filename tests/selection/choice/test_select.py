from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from backtrack.errors import SelectionError, UsageError
from backtrack.point import Point
from backtrack.recipe import (
    BaseSection,
    BudgetSection,
    ChoosingRecipe,
    Recipe,
    SelectSection,
)
from backtrack.records.selection import Constraints, Yardstick
from backtrack.run.directory import Run
from backtrack.selection.choice.rule import INDIFFERENCE
from backtrack.selection.choice.select import Choice, select
from backtrack.selection.measure.evaluator import Evaluator
from backtrack.selection.measure.settings import read_settings
from backtrack.selection.search.driver import search
from backtrack.selection.stats.items import split_items
from tests.selection.fakes import (
    FakeEngine,
    Formula,
    as_if_by_recipe,
    entry_of,
    make_info,
    make_recipe,
    make_run,
    measured,
    pair,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backtrack.records.selection import Difference, Selection
    from backtrack.selection.measure.progress import Progress
    from backtrack.selection.search.budget import Plan

pytestmark = pytest.mark.usefixtures("study_in_memory")

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def pick(run: Run, objectives: Any, **given: Any) -> Choice:
    """Choose on a line of anchors; nothing is left to a sampler."""
    return select(
        run, placement=given.pop("placement", FakeEngine()), objectives=objectives, **given
    )


def line(path: Path, num_items: int = 200, **search: Any) -> Run:
    items = {"selection": num_items, "report": num_items}
    return make_run(
        path, make_recipe(alphas=ALPHAS, trials=0, checkpoints=0, items=items, **search)
    )


def to(selection: Selection, end: str) -> Difference:
    return next(difference for difference in selection.differences if difference.to == end)


def flat(level: float) -> Any:
    return lambda _progress: level


def test_a_point_between_base_and_final_is_chosen_where_the_trade_off_is_steep(tmp_path: Path):
    choice = pick(line(tmp_path / "run"), pair(num_items=1000), weight=0.5)
    selection = choice.selection
    assert 0.2 <= choice.point.alpha <= 0.6
    assert to(selection, "final").utility.low > 0
    assert to(selection, "base").utility.low > 0
    assert "does better than the base" in selection.verdict
    assert "and the final checkpoint" in selection.verdict
    assert selection.verdict.startswith(f"Step 40 alpha {choice.point.alpha:g}")


def test_the_choice_is_the_nearest_to_the_base_of_those_nearly_as_good_as_the_top(tmp_path: Path):
    choice = pick(line(tmp_path / "run"), pair(num_items=1000))
    candidates = choice.selection.candidates
    highest = max(c.smoothed for c in candidates)
    worth = [c for c in candidates if c.smoothed >= highest - INDIFFERENCE]
    assert choice.selection.candidate(choice.point).distance == min(c.distance for c in worth)


def test_what_adoption_found_is_among_the_notes(tmp_path: Path) -> None:
    run = line(tmp_path / "run")
    note = "checkpoint-20 has a value head, which is left out."
    run.write_manifest(run.manifest.model_copy(update={"notes": (note,)}))
    assert note in pick(run, pair(flat(0.4), flat(0.6))).selection.notes


def test_without_any_effect_nothing_is_claimed_and_the_cautious_rule_takes_the_base(
    tmp_path: Path,
):
    run, objectives = line(tmp_path / "run"), pair(flat(0.4), flat(0.6), num_items=1000)
    choice = pick(run, objectives, is_cautious=True)
    assert choice.point == Point.base()
    assert "cannot be told apart from the final checkpoint" in choice.selection.verdict
    assert to(choice.selection, "base").utility.estimate == 0
    assert any("base" in note for note in choice.selection.notes)
    assert "does better" not in pick(run, objectives).selection.verdict


def test_an_effect_too_small_for_the_items_is_chosen_but_not_claimed(tmp_path: Path):
    objectives = pair(lambda x: 0.4 + 0.05 * x, flat(0.6), shake=0.5, num_items=100)
    run = line(tmp_path / "run", num_items=40)
    selection = pick(run, objectives).selection
    assert selection.cautious == Point.base() != selection.chosen
    assert "cannot be told apart from the base" in selection.verdict
    assert "The cautious rule takes the base." in selection.verdict
    cautious = pick(run, objectives, is_cautious=True).selection
    assert cautious.is_cautious
    assert cautious.chosen == cautious.cautious == Point.base()
    assert cautious.candidates == selection.candidates
    assert all(r.point.is_base for r in cautious.ranges if r.low <= 0.5 <= r.high)
    recipe = run.recipe.model_copy(update={"select": SelectSection(cautious=True)})  # type: ignore[union-attr]
    assert pick(run, objectives, recipe=recipe).point == Point.base()
    (note,) = [note for note in selection.notes if "items cannot tell" in note]
    assert "from the base" in note
    assert "items a role would" in note


def test_weight_one_goes_for_the_target_and_weight_zero_stays_at_the_base(tmp_path: Path):
    run = line(tmp_path / "run")
    objectives = pair(num_items=1000)
    assert pick(run, objectives, weight=1).point.alpha >= 0.6
    assert pick(run, objectives, weight=0).point == Point.base()


def test_the_recipe_says_the_weight_and_the_bounds_where_the_caller_does_not(tmp_path: Path):
    run = line(tmp_path / "run")
    assert run.recipe is not None
    asked = {"weight": 0.9, "max_general_drop": 2.0}
    recipe = run.recipe.model_copy(
        update={"select": type(run.recipe.select).model_validate(asked)}
    )
    selection = pick(run, pair(), recipe=recipe).selection
    assert selection.weight == 0.9
    assert selection.constraints == Constraints(max_general_drop=2.0)


def test_bounds_hold_on_the_selection_items(tmp_path: Path):
    bounds = Constraints(max_general_drop=1.0, keep_gain=0.3, bound_confidence=0.5)
    selection = pick(line(tmp_path / "run"), pair(), weight=1.0, constraints=bounds).selection
    base, final = selection.candidate(Point.base()), selection.candidate(selection.final)
    for candidate in selection.candidates:
        gain = candidate.smoothed_target - base.smoothed_target
        meets = base.smoothed_general - candidate.smoothed_general <= 1.0 and gain >= 0.3 * (
            final.smoothed_target - base.smoothed_target
        )
        assert candidate.is_feasible == meets
        assert candidate.is_feasible or not candidate.is_tied
    assert selection.candidate(selection.chosen).is_feasible


def test_bounds_nothing_meets_are_counted_with_what_can_be_reached(tmp_path: Path):
    bounds = Constraints(max_general_drop=12.0, keep_gain=0.5)
    objectives = pair(lambda x: 0.3 + 0.3 * x, lambda x: 0.6 - 0.3 * x, is_exact=True)
    with pytest.raises(SelectionError) as caught:
        pick(line(tmp_path / "run"), objectives, constraints=bounds)
    # Fitted curves are drawn to their middle a little.
    said = str(caught.value).replace("14.94", "15").replace("0.3998", "0.4")
    assert said.splitlines() == [
        "none of the 11 measured points is shown to meet every bound (confidence 0.95).",
        "  max_general_drop 12 rules out 6; of those that meet the rest, "
        "step 40 alpha 0.5 is nearest: 15",
        "  keep_gain 0.5 rules out 5; of those that meet the rest, "
        "step 40 alpha 0.4 is nearest: 0.4",
        "Loosen one of them, lower --bound-confidence, or measure more points or items.",
    ]


def test_keep_gain_where_nothing_is_gained_is_noted(tmp_path: Path):
    objectives = pair(lambda x: 0.6 - 0.2 * x)
    choice = pick(line(tmp_path / "run"), objectives, constraints=Constraints(keep_gain=0.9))
    assert any("gains nothing on the target" in note for note in choice.selection.notes)


@pytest.mark.parametrize("weight", [-0.1, 1.01, float("nan")])
def test_a_weight_that_is_no_share_is_refused_before_anything_is_measured(
    tmp_path: Path, weight: float
):
    target, general = pair()
    with pytest.raises(UsageError, match="from 0 to 1"):
        pick(line(tmp_path / "run"), (target, general), weight=weight)
    assert target.calls == []


def test_a_run_without_objectives_says_how_to_give_some(tmp_path: Path):
    with pytest.raises(UsageError, match="--recipe FILE"):
        select(make_run(tmp_path / "run"))


def test_report_items_are_measured_at_base_choice_and_final_only(tmp_path: Path):
    run = line(tmp_path / "run")
    choice = pick(run, pair())
    reported = [m for m in run.measurements() if m.split == "report"]
    rivals = {row.baseline.point for row in choice.selection.baselines}
    assert {m.point for m in reported} == {Point.base(), choice.point, run.final} | rivals
    assert {m.origin for m in reported} == {"report"}
    seen = {i for m in run.measurements() if m.split == "selection" for i in m.item_ids}
    assert not seen & {i for m in reported for i in m.item_ids}
    assert choice.selection.num_items["sums"] == {"selection": 200, "report": 200}


def test_optimism_is_that_of_the_gain_over_the_base(tmp_path: Path):
    selection = pick(line(tmp_path / "run"), pair()).selection
    chosen, base = (selection.candidate(p) for p in (selection.chosen, selection.base))
    reported = to(selection, "base").utility.estimate
    assert selection.optimism == pytest.approx(chosen.utility - base.utility - reported)


def test_differences_are_those_of_the_report_rows(tmp_path: Path):
    selection = pick(line(tmp_path / "run"), pair()).selection
    for end in ("base", "final"):
        for part in ("target", "general", "utility"):
            difference = getattr(to(selection, end), part)
            rows = selection.report
            expected = getattr(rows["chosen"], part).estimate - getattr(rows[end], part).estimate
            assert difference.estimate == pytest.approx(expected)
            assert difference.low <= difference.estimate <= difference.high


def test_choosing_again_under_another_weight_measures_only_a_new_choice(tmp_path: Path):
    run = line(tmp_path / "run")
    pick(run, pair(num_items=1000), weight=0.5)
    target, general = pair(num_items=1000)
    choice = pick(run, (target, general), weight=1.0)
    assert {point for point, _ in target.calls} == {choice.point} - {run.final}


def test_choosing_again_what_is_on_record_loads_no_model_and_no_optuna(tmp_path: Path):
    run = line(tmp_path / "run")
    pick(run, pair())
    as_if_by_recipe(run, run.recipe.model_dump() | {"objectives": NOWHERE})  # type: ignore[union-attr]
    script = (
        "import sys; from backtrack.run.directory import Run; "
        "from backtrack.selection.choice.select import select; "
        f"print(select(Run.open({str(run.path)!r}), weight=0.5).point); "
        "assert not {'torch', 'optuna', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run.selection().chosen)  # type: ignore[union-attr]


NOWHERE = [
    {"kind": "python", "function": f"nowhere:{name}", "role": role, "name": name}
    for name, role in (("sums", "target"), ("prose", "general"))
]


def test_the_same_measurements_give_the_same_selection_but_for_its_time(tmp_path: Path):
    run = line(tmp_path / "run")
    first = pick(run, pair(), command="backtrack select")
    second = pick(Run.open(run.path), pair(), command="backtrack select")
    same = {"created": ""}
    assert first.selection.model_copy(update=same) == second.selection.model_copy(update=same)


def test_the_selection_is_on_disk_and_the_choice_points_to_its_report(tmp_path: Path):
    run = line(tmp_path / "run")
    choice = pick(run, pair(), command="backtrack select run")
    assert run.selection() == choice.selection
    assert choice.selection.command == "backtrack select run"
    assert choice.report == run.path / "report.html"


def loss_of(mean, unit: str = "nats a token", **given) -> Formula:
    info = make_info("loss", "general", unit=unit, direction="minimize", **given)
    return Formula(info, mean, is_exact=True)


def test_a_lower_loss_is_better_and_counts_as_a_probability(tmp_path: Path):
    loss = loss_of(lambda x: 2 + x**4)
    selection = pick(line(tmp_path / "run"), (pair()[0], loss)).selection
    assert selection.yardsticks["loss"] == Yardstick(scale="nats", zero=None, hundred=0)
    assert 0.3 <= selection.chosen.alpha <= 0.8
    assert to(selection, "final").general.low > 0
    assert to(selection, "final").scores["loss"].high < 0
    base = selection.report["base"]
    assert base.scores["loss"] == pytest.approx(2, abs=0.01)
    assert base.general.estimate == pytest.approx(100 * math.exp(-2), rel=0.01)


class EasyAndHard(Formula):
    """Every second item has a loss of 1, the others of 3."""

    def measure(self, model: Any, item_ids: Sequence[str]) -> tuple[float, ...]:
        return tuple(1.0 + 2 * (int(item_id.rpartition("/")[2]) % 2) for item_id in item_ids)


def test_each_item_counts_as_its_own_probability(tmp_path: Path):
    """A mean of probabilities is not the probability of the mean loss."""
    info = loss_of(flat(2.0)).info
    selection = pick(line(tmp_path / "run"), (pair()[0], EasyAndHard(info, flat(2.0)))).selection
    base = selection.report["base"]
    share_hard = (base.scores["loss"] - 1) / 2
    expected = 100 * ((1 - share_hard) * math.exp(-1) + share_hard * math.exp(-3))
    assert base.general.estimate == pytest.approx(expected)


def test_a_loss_beside_them_leaves_accuracies_on_their_scale(tmp_path: Path):
    """A small drop of an accuracy stays small where a loss is measured too."""
    target, general = pair()
    alone = pick(line(tmp_path / "alone"), (target, general)).selection
    beside = pick(line(tmp_path / "both"), (target, general, loss_of(flat(0.0)))).selection
    for role in ("base", "final"):
        mean = (alone.report[role].general.estimate + 100) / 2
        assert beside.report[role].general.estimate == pytest.approx(mean, abs=0.6)
        assert beside.report[role].target == alone.report[role].target


def test_a_loss_that_never_moves_adds_no_noise(tmp_path: Path):
    selection = pick(line(tmp_path / "run"), (pair()[0], loss_of(flat(2.0)))).selection
    assert to(selection, "base").general.estimate == 0
    assert selection.chosen.alpha > 0.5


def test_objectives_of_a_role_may_have_different_numbers_of_items(tmp_path: Path):
    small = Formula(make_info("logic", "general"), lambda x: 0.5 - 0.2 * x, num_items=20, seed=9)
    selection = pick(line(tmp_path / "run"), (*pair(), small)).selection
    assert selection.num_items["logic"] == {"selection": 10, "report": 10}
    (note,) = [note for note in selection.notes if "rough" in note]
    assert "logic 10 items" in note
    row = selection.report["final"]
    assert row.general.estimate == pytest.approx(
        100 * (row.scores["prose"] + row.scores["logic"]) / 2
    )


def test_points_measured_on_other_items_are_left_out_and_counted(tmp_path: Path):
    run = line(tmp_path / "run")
    pick(run, pair())
    target, general = pair()
    for objective in (target, general):
        run.record(measured(objective, Point(step=20, alpha=0.5), objective.item_ids[:7]))
    selection = pick(run, pair()).selection
    assert Point(step=20, alpha=0.5) not in [c.point for c in selection.candidates]
    assert any("1 measured points were left out" in note for note in selection.notes)


def interrupted(run: Run, after: int = 7, **given: Any) -> None:
    """Begin a search, and interrupt it at its objective number `after`."""
    objectives: Any = pair()
    objectives[1].breaks_at = after
    with pytest.raises(KeyboardInterrupt):
        search(run, placement=FakeEngine(), objectives=objectives, **given)


def test_an_interrupted_search_is_finished_before_a_point_is_chosen(tmp_path: Path):
    whole = pick(line(tmp_path / "whole"), pair()).selection
    run = line(tmp_path / "run")
    interrupted(run)
    before = sum(len(m.item_ids) for m in run.measurements())
    told: list[Progress] = []
    selection = pick(run, pair(), on_progress=told.append).selection
    kept = {"created": ""}
    assert selection.model_copy(update=kept) == whole.model_copy(update=kept)
    items = [(m.point, m.objective.name, i) for m in run.measurements() for i in m.item_ids]
    assert len(items) == len(set(items))
    searched = [p for p in told if p.total == max(q.total for q in told)]
    assert told[0].done == 0
    assert before + searched[-1].total <= 11 * 400


def test_as_is_it_is_chosen_from_what_is_there_and_said_what_is_missing(tmp_path: Path):
    run = line(tmp_path / "run")
    interrupted(run)
    selection = pick(run, pair(), is_to_finish=False).selection
    assert len(selection.candidates) < 11
    (note,) = [note for note in selection.notes if note.startswith("THE SEARCH IS NOT FINISHED")]
    assert f"{11 - len(selection.candidates)} points that every search measures" in note
    assert not [n for n in pick(run, pair()).selection.notes if "NOT FINISHED" in n]


def test_as_is_without_base_and_final_there_is_nothing_to_choose_from(tmp_path: Path):
    with pytest.raises(SelectionError, match="leave out --as-is"):
        pick(line(tmp_path / "run"), pair(), is_to_finish=False)


def test_a_choice_goes_on_as_far_as_the_search_was_asked_to_go(tmp_path: Path):
    run = line(tmp_path / "run")
    interrupted(run, trials=2)
    selection = pick(run, pair()).selection
    assert sum(c.origin == "sampler" for c in selection.candidates) == 2
    assert len(pick(run, pair()).selection.candidates) == len(selection.candidates)


def test_a_retrained_checkpoint_is_measured_again_and_the_others_are_kept(tmp_path: Path):
    recipe = make_recipe(alphas=(0.5,), trials=0, checkpoints=2, items={"selection": 50})
    run = make_run(tmp_path / "run", recipe)
    first = pick(run, pair()).selection
    run.add_entry(entry_of(40).model_copy(update={"sha256": {"w": "retrained"}}))
    assert run.replaced_since(first) == (40,)
    target, general = pair(lambda x: 0.1 + 0.8 * x)
    general.calls.clear()
    second = pick(Run.open(run.path), (target, general)).selection
    searched = {
        p
        for p, ids in general.calls
        if set(ids) & set(split_items(general.item_ids, 50, 200, 0)[0])
    }
    assert searched == {Point(step=40), Point(step=40, alpha=0.5)}
    final = second.candidate(second.final)
    assert final.scores["sums"] > first.candidate(first.final).scores["sums"] + 0.1
    assert len(second.candidates) == len(first.candidates)
    assert Run.open(run.path).replaced_since(second) == ()


def test_a_recipe_that_shares_an_objective_uses_its_scores_and_pays_only_for_its_own(
    tmp_path: Path,
):
    run = line(tmp_path / "run")
    target, general = pair()
    pick(run, (target, general))
    other = Formula(make_info("logic", "general"), lambda x: 0.6 - 0.3 * x, seed=9)
    target.calls.clear()
    plans: list[Plan] = []
    budget = BudgetSection(items=1200)
    objectives: Any = (target, other)
    search(run, placement=FakeEngine(), objectives=objectives, budget=budget, on_plan=plans.append)
    assert target.calls == []
    assert plans[0].most_items == 1200
    assert plans[0].recorded_items == 11 * 200
    spent = sum(len(ids) for _, ids in other.calls)
    assert 1000 <= spent <= 1200


@pytest.mark.parametrize(
    "changed",
    [
        {"search": {"batch_size": 4}},
        {"search": {"workers": 2}},
        {"search": {"storage": "sqlite:///elsewhere.db"}},
        {"search": {"budget": {"items": 100_000}}},
        {"search": {"racing": {"shares": [0.5]}}},
        {"placement": {"device": "cpu", "keep": "mapped"}},
    ],
)
def test_what_does_not_decide_scores_changes_without_measuring_again(
    tmp_path: Path, changed: dict[str, Any]
):
    run = line(tmp_path / "run", racing={"shares": [0.25]})
    pick(run, pair())
    recipe = run.recipe.model_dump()  # type: ignore[union-attr]
    for section, values in changed.items():
        recipe[section] = recipe[section] | values
    run.choose_by(ChoosingRecipe(recipe=Recipe.model_validate(recipe)))
    target, general = pair()
    setting = Evaluator(run, None, FakeEngine(), (target, general)).find_setting("selection")  # type: ignore[arg-type]
    assert setting is not None
    selection = pick(run, (target, general), is_to_finish=False).selection
    assert target.calls + general.calls == []
    assert len(selection.candidates) == 11


def test_a_smaller_batch_is_said_and_keeps_all_scores(tmp_path: Path):
    run = line(tmp_path / "run")
    pick(run, pair())
    recipe = run.recipe.model_copy(  # type: ignore[union-attr]
        update={"search": run.recipe.search.model_copy(update={"batch_size": 2})}  # type: ignore[union-attr]
    )
    target, general = pair()
    selection = pick(run, (target, general), recipe=recipe).selection
    assert target.calls + general.calls == []
    assert any(note.startswith("Measured with batch_size 2 and auto") for note in selection.notes)
    assert len(read_settings(run)) == 2


def test_the_recipe_of_training_is_never_changed_by_a_choice(tmp_path: Path):
    run = line(tmp_path / "run")
    before = (run.path / "recipe.resolved.json").read_bytes()
    recipe = make_recipe(alphas=(0.5,), trials=0, checkpoints=0)
    pick(run, pair(), recipe=recipe)
    assert (run.path / "recipe.resolved.json").read_bytes() == before
    reopened = Run.open(run.path)
    assert reopened.recipe == run.recipe
    assert reopened.choosing is not None
    assert reopened.choosing.recipe == recipe


def test_a_recipe_of_another_base_is_refused(tmp_path: Path):
    run = line(tmp_path / "run")
    other = make_recipe().model_copy(update={"base": BaseSection(model="another")})
    with pytest.raises(UsageError, match=r"`base\.model` is another, the run's is toy"):
        pick(run, pair(), recipe=other)
    assert not (run.path / "recipe.choosing.json").exists()


@pytest.mark.parametrize("seed", range(4))
def test_a_choice_that_breaks_its_bound_on_the_report_items_is_noted(tmp_path: Path, seed: int):
    run = line(tmp_path / "run", seed=seed)
    seen = pick(run, pair(), weight=1.0).selection
    bound = seen.candidate(seen.chosen).smoothed_target
    asked = Constraints(min_target=bound, bound_confidence=0.5)
    selection = pick(run, pair(), weight=1.0, constraints=asked).selection
    is_broken = selection.report["chosen"].target.estimate < bound
    assert is_broken == any("misses min_target" in note for note in selection.notes)


def test_chances_of_being_best_sum_to_one_over_the_feasible(tmp_path: Path):
    bounds = Constraints(max_general_drop=5.0)
    candidates = pick(line(tmp_path / "run"), pair(), constraints=bounds).selection.candidates
    assert sum(c.chance_best for c in candidates) == pytest.approx(1)
    assert all(c.chance_best == 0 for c in candidates if not c.is_feasible)


@pytest.mark.parametrize(
    ("changed", "is_served"),
    [
        ({}, True),
        ({"select": {"weight": 0.9}}, True),
        ({"search": {"trials": 99}}, True),
        ({"search": {"seed": 1}}, False),
        ({"search": {"items": {"selection": 50}}}, False),
        ({"objectives": [{"name": "sums", "items": 50}, {}]}, False),
        ({"objectives": [{"weight": 3.0}, {}]}, True),
        ({"objectives": [{"cluster": "nowhere:passage"}, {}]}, False),
        ({"placement": {"form": "merged"}}, False),
    ],
)
def test_a_recipe_is_served_from_the_record_only_if_it_measures_the_same(
    tmp_path: Path, changed: dict[str, Any], is_served: bool
):
    run = line(tmp_path / "run")
    pick(run, pair())
    kept = {"name": "toy", "base": "toy", "objectives": NOWHERE}
    as_if_by_recipe(run, kept)
    more = changed.get("objectives", [{}, {}])
    mixed = [one | other for one, other in zip(NOWHERE, more, strict=True)]
    recipe = Recipe.model_validate({**kept, **changed, "objectives": mixed})
    setting = Evaluator(run, recipe, None, None).find_setting("selection")
    assert (setting is not None) == is_served


@pytest.mark.slow
def test_reports_of_many_choices_are_honest(tmp_path: Path):
    """Over fresh items: selection scores of the choice run high, report intervals hold."""
    optimism, covered, better = [], [], []
    for seed in range(12):
        run = line(tmp_path / f"run{seed}", num_items=60, seed=seed)
        objectives = pair(num_items=2000, seed=seed, shake=0.2)
        selection = pick(run, objectives, weight=0.5).selection
        optimism.append(selection.optimism)
        found = to(selection, "final")
        truth = {
            point: 50 * sum(_truth(objective, point) for objective in objectives)
            for point in (selection.chosen, selection.final)
        }
        gap = truth[selection.chosen] - truth[selection.final]
        covered.append(found.utility.low <= gap <= found.utility.high)
        better.append(gap > 0)
    assert all(better)
    assert np.mean(covered) >= 0.75
    assert abs(np.mean(optimism)) < 5


def _truth(objective: Formula, point: Point) -> float:
    engine = FakeEngine()
    engine.place(point.canonical)
    return float(np.mean(objective.measure(engine.language_model, objective.item_ids)))


def test_each_objective_can_be_bounded_on_its_own(tmp_path: Path):
    bounds = Constraints.model_validate({"objectives": {"prose": {"max_drop": 2.0, "worst": 60}}})
    objectives = pair(is_exact=True)
    selection = pick(line(tmp_path / "run"), objectives, weight=1.0, constraints=bounds).selection
    base = selection.candidate(Point.base()).scores["prose"]
    for candidate in selection.candidates:
        score = candidate.scores["prose"]
        meets = 100 * (base - score) <= 2.0 + 1e-9 and 100 * score >= 60 - 1e-9
        assert candidate.is_feasible == meets
    wrong = Constraints.model_validate({"objectives": {"nq": {"worst": 1}}})
    other = line(tmp_path / "other")
    with pytest.raises(UsageError, match=r"'nq'.*sums, prose"):
        pick(other, pair(), constraints=wrong)


def test_bounds_the_items_can_show_at_the_base_only_say_how_many_items_could(tmp_path: Path):
    bounds = Constraints(max_general_drop=0.3)
    objectives = pair(None, lambda x: 0.7 - 0.2 * x, shake=0.6, num_items=100)
    selection = pick(
        line(tmp_path / "run", num_items=50), objectives, weight=1.0, constraints=bounds
    ).selection
    assert selection.chosen == Point.base()
    (note,) = [note for note in selection.notes if "at no point but the base" in note]
    assert note.startswith("The items show max_general_drop 0.3")
    assert "50 items): about " in note
    assert note.endswith(" items could.")


def test_a_limit_on_a_loss_is_its_highest_value(tmp_path: Path):
    info = make_info("loss", "general", unit="nats a token", direction="minimize")
    loss = Formula(info, lambda x: 2 + x**4, is_exact=True)
    bounds = Constraints.model_validate({"objectives": {"loss": {"worst": 2.1}}})
    selection = pick(line(tmp_path / "run"), (pair()[0], loss), constraints=bounds).selection
    assert all(c.is_feasible == (c.scores["loss"] <= 2.1 + 1e-9) for c in selection.candidates)


def test_ranges_of_weight_cover_zero_to_one_and_agree_with_choosing_at_each(tmp_path: Path):
    run = line(tmp_path / "run")
    ranges = pick(run, pair(num_items=1000)).selection.ranges
    assert ranges[0].low == 0
    assert ranges[-1].high == 1
    assert ranges[0].point == Point.base()
    assert all(b.low == pytest.approx(a.high + 0.01) for a, b in pairwise(ranges))
    for weight in (0.0, 0.35, 0.8):
        (served,) = [r.point for r in ranges if r.low - 1e-9 <= weight <= r.high + 1e-9]
        assert pick(run, pair(num_items=1000), weight=weight).point == served


@pytest.mark.slow
def test_hypervolume_is_one_where_one_point_has_the_best_of_both(tmp_path: Path):
    objectives = pair(lambda x: 0.2 + 0.5 * min(2 * x, 1), lambda x: 0.8 - max(x - 0.5, 0))
    for objective in objectives:
        objective.is_exact = True
    found = pick(line(tmp_path / "run"), objectives).selection.hypervolume
    assert found is not None
    # Fitted curves round the kink a little.
    assert found.estimate == pytest.approx(1, abs=0.005)
    assert 0 <= found.low <= found.high <= 1
    flat_ones = pick(line(tmp_path / "flat"), pair(flat(0.4), flat(0.6), is_exact=True))
    assert flat_ones.selection.hypervolume is None


def test_baselines_are_rows_on_the_report_items_paired_with_the_choice(tmp_path: Path):
    run = line(tmp_path / "run")
    selection = pick(run, pair(num_items=1000)).selection
    assert [row.baseline.kind for row in selection.baselines] == ["checkpoint", "grid"]
    for row in selection.baselines:
        point = row.baseline.point
        assert point is not None
        gap = selection.report["chosen"].utility.estimate - row.utility.estimate
        assert row.difference.estimate == pytest.approx(gap)
    best = max(
        (c for c in selection.candidates if c.point.alpha == 1 or c.point.is_base),
        key=lambda c: c.utility if not c.point.is_base else -1,
    )
    assert selection.baselines[0].baseline.point == best.point


def test_a_choice_after_a_spent_budget_reads_the_record_and_loads_nothing(tmp_path: Path):
    """Ends measured in part: the items they are a part of are known all the same."""
    recipe = make_recipe(budget={"items": 1500}, items={"selection": 200, "report": 200})
    run = make_run(tmp_path / "run", recipe)
    first = pick(run, pair(num_items=1000)).selection
    assert any(c.share < 1 for c in first.candidates)
    assert Evaluator(run, None, None, pair(num_items=1000)).find_setting("selection") is not None  # type: ignore[arg-type]
    again = pick(Run.open(run.path), pair(num_items=1000), placement=FakeEngine()).selection
    assert again.chosen == first.chosen
    scored = sum(len(m.item_ids) for m in run.measurements() if m.split == "selection")
    assert scored <= 1500


def test_no_cluster_is_searched_and_reported(tmp_path: Path):
    run = line(tmp_path / "run", num_items=60)
    target, general = pair()
    ids = target.item_ids
    target.clusters = {each: ids[i // 5 * 5] for i, each in enumerate(ids)}
    selection = pick(run, (target, general)).selection
    (setting,) = read_settings(run)
    shared = [
        {setting.clusters["sums"][each] for each in setting.items[split]["sums"]}
        for split in ("selection", "report")
    ]
    assert [len(clusters) for clusters in shared] == [12, 12]
    assert not shared[0] & shared[1]
    assert list(setting.clusters) == ["sums"]
    assert any("12 clusters (60 items)" in note for note in selection.notes)


def test_a_passage_that_items_share_unsaid_is_noted_once_with_the_line_to_add(tmp_path: Path):
    run = line(tmp_path / "run", num_items=60)
    target, general = pair()
    target.shared_field = "context"
    first = pick(run, (target, general)).selection
    as_if_by_recipe(run, {"name": "toy", "base": "toy", "objectives": NOWHERE})
    redrawn = select(run, is_to_finish=False).selection
    for selection in (first, redrawn):
        (note,) = [note for note in selection.notes if "share" in note]
        assert "sums" in note
        assert "`cluster: context`" in note
