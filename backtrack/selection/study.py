"""Search the path: anchors first, then points an Optuna sampler proposes. The only home of Optuna.

Promised: every measurement is in `measurements.jsonl` before the next begins, and that file is the
truth: `study.db` holds what the sampler was told and can be deleted at any time. A point already
measured is never measured again. The same recipe proposes the same points whether or not it was
interrupted (all samplers but `qmc`, whose sequence an interruption moves on by one).
Not promised: several searches of one run at once; the second is refused.

How: each trial gets a sampler seeded by the recipe's seed and the number of trials before it, so
no state outlives a process. Anchors and points of earlier searches enter the study once measured.
NOTE: they are not enqueued: a queue outlives an interrupted search in the database, and cannot
hold an anchor beyond `max_alpha`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import DatabaseError

from backtrack.errors import RunError, UsageError
from backtrack.records import ROLES
from backtrack.selection.bench import Bench
from backtrack.selection.front import make_yardsticks, role_axis, role_scores
from backtrack.selection.measured import tabulate
from backtrack.selection.progress import Meter, Progress
from backtrack.selection.space import ALPHA_STEP, anchors, highest_alpha, place_of, point_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

    from backtrack.evaluate.objective import Objective
    from backtrack.path.placement import Placement
    from backtrack.point import Point
    from backtrack.recipe import Recipe, SearchSection
    from backtrack.records import Measurement
    from backtrack.run.directory import Run

__all__ = ["Progress", "search"]

STUDY = "study.db"
STEP, ALPHA = "step", "alpha"
POINT, ORIGIN = "point", "origin"

_FEWEST_FOR_MODEL = 4
"""Points before the Gaussian process takes over from chance; the anchors are usually more."""


def search(
    run: Run,
    *,
    placement: Placement | None = None,
    recipe: Recipe | None = None,
    objectives: Sequence[Objective] | None = None,
    trials: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Measurement]:
    """Measure the anchors and the sampler's points on the selection items; resumes.

    Args:
        run: A run with at least one checkpoint.
        placement: Its live model; loaded if not given and something must be measured.
        recipe: What to measure; the run's own if not given.
        objectives: Ready-made ones, in place of the recipe's.
        trials: Points the sampler adds, earlier searches counted; the recipe's if not given.
        on_progress: Called before each objective and after each point.

    Returns:
        Measurements of this search's setting, in the order of measuring.

    Raises:
        UsageError: Nothing says what to measure.
        RunError: Another search of this run is going on, or `study.db` is damaged.
        ObjectiveError: An objective cannot be measured. What was measured stays.
    """
    if trials is not None and trials < 0:
        raise UsageError(f"trials must be 0 or more, got {trials}.")
    with _alone(run), _quiet():
        bench = Bench(run, recipe, placement, objectives)
        num_trials = bench.section.trials if trials is None else trials
        points = anchors(run.steps, bench.section)
        meter = Meter(len(points) + num_trials, on_progress)
        for point in points:
            bench.measure(point, "selection", "anchor", meter)
        if num_trials:
            with _open_study(bench) as study:
                _sample(_Sampling(bench, study), num_trials, meter)
        setting = bench.setting("selection")
        return [m for m in bench.recorded if setting.fits(m)]


class _Sampling:
    """Asks a sampler for points and tells it their role scores."""

    def __init__(self, bench: Bench, study: optuna.Study) -> None:
        self._bench = bench
        self._study = study
        self._setting = bench.setting("selection")
        self._steps = bench.run.steps
        self._highest = highest_alpha(bench.section)
        self._space: dict[str, BaseDistribution] = {
            STEP: IntDistribution(0, len(self._steps) - 1),
            ALPHA: FloatDistribution(0.0, self._highest, step=ALPHA_STEP),
        }
        table = bench.table(self._setting)
        base, final = (table.column(point) for point in bench.ends)
        ends = {name: means[[base, final]] for name, means in table.means.items()}
        self._yardsticks = make_yardsticks(self._setting.objectives, ends, 0, 1)

    def clear_stale(self) -> None:
        """Fail trials that a killed process left running: samplers keep away from those."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)

    def import_measured(self) -> None:
        """Tell the study every measured point of the space that it does not know."""
        known = {trial.user_attrs.get(POINT) for trial in self._complete()}
        table = self._bench.table(self._setting)
        for point, origin in zip(table.points, table.origins, strict=True):
            place = place_of(self._steps, point, self._highest)
            if place is None or str(point) in known:
                continue
            self._study.add_trial(
                create_trial(
                    params=dict(zip((STEP, ALPHA), place, strict=True)),
                    distributions=self._space,
                    values=self._values(point),
                    user_attrs={POINT: str(point), ORIGIN: origin},
                )
            )

    @property
    def last_point(self) -> Point:
        return self._bench.table(self._setting).points[-1]

    def num_done(self) -> int:
        """Points the sampler has added, in this search and earlier ones."""
        return sum(trial.user_attrs.get(ORIGIN) == "sampler" for trial in self._complete())

    def step(self, meter: Meter) -> None:
        """One trial: ask, measure, tell. On any exception the trial is failed first."""
        self._study.sampler = make_sampler(self._bench.section, self.num_done())
        trial = self._study.ask(self._space)
        point = point_at(self._steps, trial.params[STEP], trial.params[ALPHA])
        trial.set_user_attr(POINT, str(point))
        trial.set_user_attr(ORIGIN, "sampler")
        try:
            self._bench.measure(point, "selection", "sampler", meter)
            values = self._values(point)
        except BaseException:
            self._study.tell(trial, state=TrialState.FAIL)
            raise
        self._study.tell(trial, values)

    def _values(self, point: Point) -> list[float]:
        """Role scores, never negated. A role in points is ranged between base and final."""
        of_point = [m for m in self._bench.recorded if m.point.canonical == point]
        table = tabulate(self._setting, of_point)
        objectives = self._setting.objectives
        return [
            float(role_scores(table.means, objectives, self._yardsticks, role)[0])
            for role in ROLES
        ]

    def _complete(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _sample(sampling: _Sampling, num_trials: int, meter: Meter) -> None:
    sampling.clear_stale()
    sampling.import_measured()
    done = sampling.num_done()
    meter.skip(sampling.last_point, min(done, num_trials))
    for _ in range(done, num_trials):
        sampling.step(meter)


def make_sampler(section: SearchSection, num_before: int) -> BaseSampler:
    """The recipe's sampler for the trial after `num_before` others.

    A scrambled low-discrepancy sequence needs one seed throughout; the others get one a trial.
    """
    seed = int(hashlib.sha256(f"{section.seed}/{num_before}".encode()).hexdigest()[:7], 16)
    match section.sampler:
        case "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=_FEWEST_FOR_MODEL)
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, multivariate=True)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        case "qmc":
            return optuna.samplers.QMCSampler(seed=section.seed, scramble=True)
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)


@contextmanager
def _open_study(bench: Bench) -> Iterator[optuna.Study]:
    """The study of this search's setting; one database holds those of other settings beside it."""
    path = bench.run.path / STUDY
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}")
    except DatabaseError as error:
        raise RunError(
            f"{path} is damaged ({error.orig}). Delete it: every measurement is in "
            "measurements.jsonl, and the search goes on from there."
        ) from error
    try:
        yield optuna.create_study(
            storage=storage,
            study_name=_study_name(bench),
            directions=[
                role_axis(bench.setting("selection").objectives, role).direction for role in ROLES
            ],
            load_if_exists=True,
        )
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _study_name(bench: Bench) -> str:
    """A name for all that makes trials comparable: the space and the setting."""
    setting = bench.setting("selection")
    parts: list[Any] = [
        bench.run.steps,
        highest_alpha(bench.section),
        setting.form,
        setting.curve,
        [(o.name, o.role, o.weight, o.fingerprint) for o in setting.objectives],
        setting.item_ids,
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"search-{digest[:12]}"


@contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Hold the run against a second search.

    Raises:
        RunError: One is going on.
    """
    with (run.path / ".search.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another search of {run.path} is going on. Wait until it ends, or stop it: "
                "the next one goes on where it stopped."
            ) from error
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's reports of each trial, and its word that a sampler is new, from the user."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
