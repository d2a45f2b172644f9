"""The Optuna study of a search: what optuna-dashboard shows. Only the driver writes it.

Each point is a trial, with the step itself as a parameter: RUNNING as long as it may get more
items, COMPLETE when it has all, PRUNED if it has not when the search ends. Ended trials have both
roles' scores, of a pruned one as estimated from its items, and the constraints. The point's name,
its last rung, the objectives' scores and the share of items are user attributes. Values are in the
unit of their role, never negated.

Nothing is decided by it but what the sampler noted with its proposals: it can be deleted at any
time, and is made again from the measurements.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import IntDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import Trial, TrialState, create_trial
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from backtrack.errors import RunError, UsageError
from backtrack.selection.search.sampler import distributions
from backtrack.selection.search.space import STEP

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

    from backtrack.records import Axis, Role
    from backtrack.records.search import Decision
    from backtrack.selection.search.observations import NotedPoint
    from backtrack.selection.search.space import Space

STUDY = "study.db"
POINT, RUNG, ORIGIN, NOTES = "point", "rung", "origin", "notes"


class Study:
    """The study of one search."""

    def __init__(self, study: optuna.Study, storage: RDBStorage, space: Space):
        self._study = study
        self._storage = storage
        self._space = space
        steps = IntDistribution(space.steps[0], space.steps[-1])
        self._distributions = distributions(space) | {STEP: steps}

    def notes(self) -> dict[str, dict[str, Any]]:
        """System attributes the sampler stored with its proposals, by the point's name."""
        trials = self._trials(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        return {t.user_attrs[POINT]: t.user_attrs[NOTES] for t in trials if NOTES in t.user_attrs}

    def complete(self) -> set[str]:
        """Names of the points whose trial is complete."""
        return self._names(TrialState.COMPLETE)

    def ended(self) -> set[str]:
        """Names of the points whose trial has ended, and is not gone on with."""
        ended = self._names(TrialState.COMPLETE, TrialState.PRUNED)
        return ended - self._names(TrialState.RUNNING)

    def add(self, decision: Decision, noted: NotedPoint) -> None:
        """Note a measured evaluation in its point's trial, which begins with the first.

        Args:
            decision: The evaluation, and the sampler's notes if it proposed the point.
            noted: What is known of the point now.
        """
        trial = self._running(decision) or self._begun(decision)
        attributes = {RUNG: decision.evaluation.rung, **noted.attributes}
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        if noted.observed is not None:
            for name, violation in noted.observed.constraints.items():
                trial.set_constraint(name, violation)
            # `Study.tell` would leave a pruned trial of two objectives without values.
            self._storage.set_trial_state_values(
                trial._trial_id,  # noqa: SLF001  # what the storage knows a trial by
                TrialState.COMPLETE if noted.is_whole else TrialState.PRUNED,
                noted.observed.values,
            )

    def _running(self, decision: Decision) -> Trial | None:
        name = str(decision.evaluation.point)
        for frozen in self._trials(TrialState.RUNNING):
            if frozen.user_attrs.get(POINT) == name:
                return Trial(self._study, frozen._trial_id)  # noqa: SLF001  # as above
        return None

    def _begun(self, decision: Decision) -> Trial:
        """Begin the trial of a point; without parameters outside the space."""
        evaluation, notes = decision.evaluation, decision.notes
        parameters = self._space.parameters_of(evaluation.point)
        if parameters:
            parameters[STEP] = self._space.steps[int(parameters[STEP])]
        template = create_trial(
            state=TrialState.RUNNING,
            params=parameters or {},
            distributions=self._distributions if parameters else {},
            user_attrs={
                POINT: str(evaluation.point),
                ORIGIN: evaluation.origin,
                **({NOTES: notes} if notes else {}),
            },
        )
        study_id = self._storage.get_study_id_from_name(self._study.study_name)
        return Trial(self._study, self._storage.create_new_trial(study_id, template))

    def add_apart(
        self, name: str, values: Sequence[float], attributes: Mapping[str, object]
    ) -> None:
        """Add a complete trial, without parameters, of a baseline that is not a point."""
        user_attrs = {POINT: name, ORIGIN: "baseline", **attributes}
        self._study.add_trial(create_trial(values=list(values), user_attrs=user_attrs))

    def _names(self, *states: TrialState) -> set[str]:
        return {trial.user_attrs.get(POINT, "") for trial in self._trials(*states)}

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        try:
            return self._study.get_trials(deepcopy=False, states=states)
        except (ValueError, LookupError, RecursionError) as error:  # of what a column holds
            raise StorageInternalError(f"a column is damaged: {error}") from error


@contextmanager
def open_study(url: str, name: str, axes: Mapping[Role, Axis], space: Space) -> Iterator[Study]:
    """Open or create the study `name` in a database, which may hold other searches' studies.

    Args:
        url: The database: `sqlite:///FILE`, or that of a server.
        name: The study's name.
        axes: Unit and direction of each role, which name and direct the values.
        space: The search space.

    Raises:
        RunError: The database is damaged, or does not answer.
        UsageError: `url` is not a database URL, or its driver is not installed.
    """
    with _named_database(url):
        storage = _open_storage(url)
        try:
            directions = [axis.direction for axis in axes.values()]
            study = optuna.create_study(
                storage=storage, study_name=name, directions=directions, load_if_exists=True
            )
            study.set_metric_names([f"{role} ({axis.unit})" for role, axis in axes.items()])
            yield Study(study, storage, space)
        finally:
            storage.remove_session()
            storage.engine.dispose()


@contextmanager
def _named_database(url: str) -> Iterator[None]:
    """Turn an error of the database into a `RunError` with its cause."""
    try:
        yield
    except (DatabaseError, StorageInternalError) as error:
        source = error.__cause__ if isinstance(error.__cause__, DatabaseError) else error
        cause = str(getattr(source, "orig", source)).strip().splitlines()[0]
        file = url.removeprefix("sqlite:///")
        if file == url:
            text = (
                f"the database of --storage does not answer: {cause}. Is it running, and "
                "reachable from here? Earlier measurements are in measurements.jsonl."
            )
        elif isinstance(source, OperationalError):  # locked, on a full disk, read-only
            text = (
                f"{file} cannot be read or written ({cause}). Every measurement is in "
                "measurements.jsonl: the same command resumes."
            )
        else:
            text = (
                f"{file} is damaged ({cause}). Delete it: every measurement is in "
                "measurements.jsonl, and the search resumes from there."
            )
        raise RunError(text) from error


def _open_storage(url: str) -> RDBStorage:
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        raise UsageError(
            f"the storage needs a driver that is not installed ({error}). Install it, or leave "
            "out --storage to use study.db in the run."
        ) from error
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise UsageError(
            "the storage is not a database URL. Write postgresql://USER@HOST/NAME with --storage, "
            "or leave it out to use study.db in the run."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's report of each trial and its warnings about experimental features."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
