from __future__ import annotations

import contextlib
import math
import shutil
import sqlite3
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from backtrack.errors import ObjectiveError, RunError, UsageError
from backtrack.point import Point
from backtrack.recipe import Recipe
from backtrack.run.directory import Run
from backtrack.run.files import hold_lock
from backtrack.selection.measure.progress import Progress
from backtrack.selection.search.driver import search
from backtrack.selection.search.space import anchors
from tests.selection.fakes import (
    STEPS,
    FakeEngine,
    Formula,
    make_info,
    make_recipe,
    make_run,
    pair,
)

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.records import Measurement

pytestmark = pytest.mark.usefixtures("study_in_memory")

SAMPLERS = ["gp", "tpe", "nsga2", "random"]


def points(measurements: list[Measurement]) -> list[str]:
    return [str(point) for point in dict.fromkeys(m.point for m in measurements)]


def seek(run: Run, objectives: Any, **given: Any) -> list[Measurement]:
    return search(
        run, placement=given.pop("placement", FakeEngine()), objectives=objectives, **given
    )


def dropped_of(run: Run) -> set[str]:
    """Points that were not measured on all items."""
    counts: dict[str, int] = {}
    for m in run.measurements():
        counts[str(m.point)] = counts.get(str(m.point), 0) + len(m.item_ids)
    return {point for point, count in counts.items() if count < max(counts.values())}


def trials_of(run: Run, *states: str) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{run.path}/study.db"
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    return [trial for trial in trials if not states or trial.state.name in states]


@pytest.fixture(scope="module")
def searched_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after a search, with `study.db`."""
    run = make_run(tmp_path_factory.mktemp("searched") / "run")
    seek(run, pair())
    return run.path


@pytest.fixture
def searched(searched_once: Path, study_on_disk: None, tmp_path: Path) -> Run:
    """A copy of it."""
    return Run.open(shutil.copytree(searched_once, tmp_path / "run"))


def test_anchors_come_first_then_as_many_points_as_the_recipe_asks_for(tmp_path: Path):
    run = make_run(tmp_path / "run")
    found = seek(run, pair())
    expected = anchors(STEPS, make_recipe().search)
    assert points(found)[: len(expected)] == [str(point) for point in expected]
    assert len(points(found)) == len(expected) + 3
    origins = dict.fromkeys((m.point, m.origin) for m in found)
    assert [origin for _, origin in origins] == ["anchor"] * len(expected) + ["sampler"] * 3


def test_the_search_sees_selection_items_only_and_the_same_ones_at_every_point(tmp_path: Path):
    run = make_run(tmp_path / "run", make_recipe(items={"selection": 20, "report": 30}))
    target, general = pair()
    found = seek(run, (target, general))
    assert {m.split for m in found} == {"selection"}
    for objective in (target, general):
        rungs = list(dict.fromkeys(items for _, items in objective.calls))
        assert [len(items) for items in rungs] == [5, 15]
        assert not set(rungs[0]) & set(rungs[1])
        assert {m.item_ids for m in found if m.objective == objective.info} == set(rungs)


def test_what_is_returned_is_what_is_on_disk(tmp_path: Path):
    run = make_run(tmp_path / "run")
    assert seek(run, pair()) == Run.open(run.path).measurements()


def test_a_model_is_not_placed_at_the_point_it_is_at(tmp_path: Path):
    placement = FakeEngine()
    seek(make_run(tmp_path / "run"), pair(), placement=placement)
    visits = placement.visits
    assert visits[:2] == [Point.base(), Point(step=40)]
    assert all(point != following for point, following in pairwise(visits))


def test_a_placement_in_this_process_is_refused_under_a_recipe_for_vllm(tmp_path: Path):
    recipe = Recipe.model_validate({"name": "mine", "base": "toy", "engine": "vllm"})
    with pytest.raises(UsageError, match="a model in this process"):
        seek(make_run(tmp_path / "run"), pair(), recipe=recipe, placement=SimpleNamespace())


def test_searching_again_measures_nothing(searched: Run):
    found = searched.measurements()
    target, general = pair()
    placement = FakeEngine()
    assert seek(searched, (target, general), placement=placement) == found
    assert not target.calls + general.calls
    assert not placement.visits


def test_more_trials_add_only_the_new_ones(tmp_path: Path):
    run = make_run(tmp_path / "run")
    fewer = seek(run, pair(), trials=2)
    more = seek(run, pair(), trials=4)
    assert more[: len(fewer)] == fewer
    assert len(points(more)) == len(points(fewer)) + 2


@pytest.mark.parametrize(
    ("sampler", "breaks_at"), [("random", 3), ("random", 9), ("tpe", 9), ("nsga2", 9), ("gp", 8)]
)
def test_an_interrupted_search_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, sampler: str, breaks_at: int
):
    """Interrupted among the anchors, or between the two objectives of a sampler's second point."""
    recipe = make_recipe(sampler=sampler, trials=1 if sampler == "gp" else 4)
    whole = seek(make_run(tmp_path / "whole", recipe), pair())

    run = make_run(tmp_path / "broken", recipe)
    target, general = pair()
    general.breaks_at = breaks_at
    with pytest.raises(KeyboardInterrupt):
        seek(run, (target, general))
    before = run.measurements()
    assert len(before) == 2 * breaks_at + 1
    resumed = seek(Run.open(run.path), pair())
    assert resumed[: len(before)] == before
    assert [(m.point, m.objective, m.scores) for m in resumed] == [
        (m.point, m.objective, m.scores) for m in whole
    ]


def test_a_lost_study_is_made_again_from_the_measurements(searched: Run):
    found = searched.measurements()
    (searched.path / "study.db").unlink()
    assert seek(searched, pair()) == found
    whole = [t.user_attrs["point"] for t in trials_of(searched, "COMPLETE")]
    assert sorted(whole) == sorted(set(points(found)) - dropped_of(searched))


@pytest.mark.usefixtures("study_on_disk")
def test_the_study_holds_role_scores_in_points_of_which_more_is_better(tmp_path: Path):
    run = make_run(tmp_path / "run")
    loss = Formula(
        make_info("loss", "general", unit="nats a token", direction="minimize"),
        lambda x: 2 + x,
        is_exact=True,
    )
    seek(run, (pair()[0], loss))
    storage = f"sqlite:///{run.path}/study.db"
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MAXIMIZE"]
    assert study.metric_names == ["target (%)", "general (points)"]
    whole = {t.user_attrs["point"]: t for t in study.trials if t.state.name == "COMPLETE"}
    base, final = whole["base"], whole["step 40 alpha 1"]
    assert base.params["alpha"] == 0
    assert final.params == {"step": 40, "alpha": 1}
    points = (100 * math.exp(-2), 100 * math.exp(-3))
    assert (base.values[1], final.values[1]) == pytest.approx(points, rel=0.01)
    assert (base.user_attrs["loss"], final.user_attrs["loss"]) == pytest.approx((2, 3), abs=0.01)


@pytest.mark.usefixtures("study_on_disk")
def test_each_point_is_one_trial_and_one_without_all_items_is_pruned_with_what_it_has(
    tmp_path: Path,
):
    run = make_run(tmp_path / "run", make_recipe(budget={"items": 1000}))
    found = seek(run, pair())
    trials = {t.user_attrs["point"]: t for t in trials_of(run)}
    assert len(trials) == len(trials_of(run))
    assert set(trials) == set(points(found))
    pruned = {name for name, trial in trials.items() if trial.state.name == "PRUNED"}
    assert pruned == dropped_of(run)
    assert pruned
    for name in pruned:
        assert trials[name].user_attrs["share of items"] < 1
        assert 0 < min(trials[name].values) <= max(trials[name].values) < 100
    assert {t.state.name for t in trials.values()} == {"COMPLETE", "PRUNED"}
    assert seek(run, pair()) == found
    assert len(trials_of(run)) == len(trials)


@pytest.mark.usefixtures("study_on_disk")
def test_a_point_under_way_runs_until_its_search_is_over(tmp_path: Path):
    run = make_run(tmp_path / "run")

    def stop(progress: Progress) -> None:
        if len({m.point for m in run.measurements()}) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seek(run, pair(), on_progress=stop)
    begun = trials_of(run, "RUNNING")
    assert begun
    seek(Run.open(run.path), pair())
    assert not trials_of(run, "RUNNING")
    assert len({t.user_attrs["point"] for t in trials_of(run)}) == len(trials_of(run))
    for trial, ended in zip(begun, trials_of(run), strict=False):
        assert ended.user_attrs["point"] == trial.user_attrs["point"]


@pytest.mark.usefixtures("study_on_disk")
def test_a_study_of_an_earlier_version_is_gone_on_with(tmp_path: Path):
    run = make_run(tmp_path / "run")
    found = seek(run, pair(), trials=0)
    storage = f"sqlite:///{run.path}/study.db"
    (name,) = optuna.get_all_study_names(storage)
    optuna.delete_study(study_name=name, storage=storage)
    study = optuna.create_study(
        study_name=name, storage=storage, directions=["maximize", "maximize"]
    )
    index, alpha = IntDistribution(0, 3), FloatDistribution(0.0, 1.0, step=0.01)
    for state, values in ((TrialState.PRUNED, None), (TrialState.COMPLETE, [10.0, 99.0])):
        study.add_trial(
            create_trial(
                state=state,
                values=values,
                params={"step": 3, "alpha": 0.0},
                distributions={"step": index, "alpha": alpha},
                user_attrs={"point": "base"},
            )
        )
    more = seek(Run.open(run.path), pair(), trials=2)
    assert more[: len(found)] == found
    assert {t.user_attrs["point"] for t in trials_of(run)} == set(points(more))


def test_a_changed_objective_is_measured_anew(searched: Run):
    target, general = pair()
    changed = Formula(make_info("sums", "target", fingerprint="other"), target.mean)
    found = seek(searched, (changed, general))
    assert {str(point) for point, _ in changed.calls} == set(points(found))


def test_another_form_is_measured_again(tmp_path: Path):
    run = make_run(tmp_path / "run")
    seek(run, pair(), trials=0)
    target, general = pair()
    found = seek(run, (target, general), trials=0, placement=FakeEngine(form="merged"))
    assert {m.form for m in found} == {"merged"}
    assert len(target.calls) == len(found) / 2


def test_anchors_outside_the_search_space_are_measured_too(tmp_path: Path):
    run = make_run(tmp_path / "run", make_recipe(alphas=(0.333, 1.5), max_alpha=0.7))
    found = seek(run, pair())
    assert {"step 40 alpha 1.5", "step 40 alpha 0.333", "step 40 alpha 1"} <= set(points(found))
    assert all(m.point.alpha <= 0.7 for m in found if m.origin == "sampler")


@pytest.mark.parametrize("sampler", [*SAMPLERS, "qmc"])
def test_every_sampler_works_on_a_run_of_one_checkpoint(tmp_path: Path, sampler: str):
    run = make_run(tmp_path / "run", make_recipe(sampler=sampler, trials=1), steps=[40])
    assert {m.point.step for m in seek(run, pair(num_items=8))} <= {0, 40}


def test_a_proposal_already_measured_costs_nothing_and_counts(tmp_path: Path):
    run = make_run(tmp_path / "run", make_recipe(alphas=(), max_alpha=0.01, trials=5), steps=[40])
    target, general = pair()
    placement = FakeEngine()
    found = seek(run, (target, general), placement=placement)
    assert set(points(found)) <= {"base", "step 40 alpha 1", "step 40 alpha 0.01"}
    assert len(target.calls) == 2 * len(points(found))


def test_progress_counts_items_up_to_the_total(tmp_path: Path):
    seen: list[Progress] = []
    recipe = make_recipe(trials=2)
    seek(make_run(tmp_path / "run", recipe), pair(), on_progress=seen.append)
    most = 400 * (len(anchors(STEPS, recipe.search)) + 2)
    assert {progress.total for progress in seen[:-1]} == {most}
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[0] == Progress(0, most, Point.base(), "sums", None)
    assert (seen[-1].done, seen[-1].seconds_left) == (seen[-1].total, 0)


def test_progress_of_a_finished_search_reaches_the_total_too(searched: Run):
    seen: list[Progress] = []
    seek(searched, pair(), on_progress=seen.append)
    assert seen[-1].done == seen[-1].total


def test_a_second_search_of_the_same_run_is_refused(tmp_path: Path):
    run = make_run(tmp_path / "run")
    with hold_lock(run.path / ".search.lock"), pytest.raises(RunError, match="another search"):
        seek(run, pair())


@pytest.mark.usefixtures("study_on_disk")
def test_a_damaged_study_is_named_and_the_error_says_what_to_do(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run.path / "study.db").write_bytes(b"not a database" * 100)
    with pytest.raises(RunError, match=r"study\.db is damaged .* Delete it"):
        seek(run, pair())


@pytest.mark.parametrize(
    ("size", "statement", "message"),
    [
        (4096, None, r"study\.db is damaged \(database disk image is malformed\)\. Delete it"),
        (None, "'{'", r"study\.db is damaged \(a column is damaged: Expecting property"),
        (
            None,
            f"'{'[' * 3000}'",
            r"study\.db is damaged \(a column is damaged: maximum",
        ),
        (
            None,
            f"'{'1' * 5000}'",
            r"study\.db is damaged \(a column is damaged: Exceeds",
        ),
        (
            None,
            "cast(x'22ff22' as text)",
            r"study\.db cannot be read or written \(Could not",
        ),
    ],
)
def test_a_study_damaged_inside_is_named(
    searched: Run, size: int | None, statement: str | None, message: str
):
    path = searched.path / "study.db"
    if statement is not None:
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute(f"update trial_user_attributes set value_json={statement}")
    else:
        path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(RunError, match=message):
        seek(searched, pair())


def test_without_objectives_the_error_says_how_to_give_some(tmp_path: Path):
    with pytest.raises(UsageError, match=r"--recipe FILE.*`objectives:`"):
        search(make_run(tmp_path / "run"), placement=FakeEngine())


def test_a_role_without_an_objective_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no objective has the role `general`"):
        seek(make_run(tmp_path / "run"), pair()[:1])


def test_an_objective_of_three_items_is_named(tmp_path: Path):
    with pytest.raises(ObjectiveError, match=r"'sums': 3 items"):
        seek(make_run(tmp_path / "run"), pair(num_items=3))


def test_a_score_that_is_not_finite_is_refused_and_not_recorded(tmp_path: Path):
    run = make_run(tmp_path / "run")
    target = Formula(make_info("sums", "target"), lambda x: float("nan"), is_exact=True)
    with pytest.raises(ObjectiveError, match=r"'sums' gave nan .* at base"):
        seek(run, (target, pair()[1]))
    assert run.measurements() == []


def test_a_fraction_above_one_is_refused_and_told_what_to_write(tmp_path: Path):
    run = make_run(tmp_path / "run")
    target = Formula(make_info("sums", "target"), lambda x: 38.1, is_exact=True)
    with pytest.raises(ObjectiveError, match=r"'sums' gave 38\.\d+ .*`range: \[worst, best\]`"):
        seek(run, (target, pair()[1]))
    assert run.measurements() == []


def test_optunas_own_verbosity_is_left_as_it_was(tmp_path: Path):
    before = optuna.logging.get_verbosity()
    seek(make_run(tmp_path / "run"), pair())
    assert optuna.logging.get_verbosity() == before
