"""The Optuna study of a search: what optuna-dashboard shows. Only the driver writes it.

Each evaluation that is measured is a trial: COMPLETE, with both roles' scores and the constraints,
if its point has all items, else PRUNED. The point's name, its rung, the objectives' scores and the
share of items are user attributes. Values are in the unit of their role, never negated.

Nothing is decided by it but what the sampler noted with its proposals: it can be deleted at any
time, and is made again from the measurements.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from backtrack.errors import RunError, UsageError
from backtrack.selection.search.sampler import distributions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from optuna.trial import FrozenTrial

    from backtrack.records import Direction
    from backtrack.records.search import Decision
    from backtrack.selection.search.sampler import ObservedPoint
    from backtrack.selection.search.space import Space

STUDY = "study.db"
POINT, RUNG, ORIGIN, NOTES = "point", "rung", "origin", "notes"


class Study:
    """The study of one search."""

    def __init__(self, study: optuna.Study, space: Space):
        self._study = study
        self._space = space
        self._distributions = distributions(space)

    def notes(self) -> dict[str, dict[str, Any]]:
        """System attributes the sampler stored with its proposals, by the point's name."""
        trials = self._trials(TrialState.COMPLETE, TrialState.PRUNED)
        return {t.user_attrs[POINT]: t.user_attrs[NOTES] for t in trials if NOTES in t.user_attrs}

    def known(self) -> set[str]:
        """Names of the points with a complete trial."""
        return {trial.user_attrs.get(POINT, "") for trial in self._trials(TrialState.COMPLETE)}

    def add(
        self,
        decision: Decision,
        observed: ObservedPoint | None,
        attributes: Mapping[str, Any],
    ) -> None:
        """Add the trial of a measured evaluation; without parameters outside the space.

        Args:
            decision: The evaluation, and the sampler's notes if it proposed the point.
            observed: The point's scores, if it has all items.
            attributes: Further user attributes.
        """
        evaluation, notes = decision.evaluation, decision.notes
        parameters = self._space.parameters_of(evaluation.point)
        user_attrs = {
            POINT: str(evaluation.point),
            RUNG: evaluation.rung,
            ORIGIN: evaluation.origin,
            **({NOTES: notes} if notes else {}),
            **attributes,
        }
        trial = create_trial(
            state=TrialState.PRUNED if observed is None else TrialState.COMPLETE,
            params=parameters or {},
            distributions=self._distributions if parameters else {},
            values=list(observed.values) if observed else None,
            user_attrs=user_attrs,
            constraints=dict(observed.constraints) or None if observed else None,
        )
        self._study.add_trial(trial)

    def add_apart(
        self, name: str, values: Sequence[float], attributes: Mapping[str, object]
    ) -> None:
        """Add a complete trial, without parameters, of a baseline that is not a point."""
        user_attrs = {POINT: name, ORIGIN: "baseline", **attributes}
        self._study.add_trial(create_trial(values=list(values), user_attrs=user_attrs))

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        try:
            return self._study.get_trials(deepcopy=False, states=states)
        except (ValueError, LookupError, RecursionError) as error:  # of what a column holds
            raise StorageInternalError(f"a column is damaged: {error}") from error


@contextmanager
def open_study(
    url: str, name: str, directions: Sequence[Direction], space: Space
) -> Iterator[Study]:
    """Open or create the study `name` in a database, which may hold other searches' studies.

    Args:
        url: The database: `sqlite:///FILE`, or that of a server.
        name: The study's name.
        directions: The roles' directions.
        space: The search space.

    Raises:
        RunError: The database is damaged, or does not answer.
        UsageError: `url` is not a database URL, or its driver is not installed.
    """
    with _named_database(url):
        storage = _open_storage(url)
        try:
            study = optuna.create_study(
                storage=storage, study_name=name, directions=list(directions), load_if_exists=True
            )
            yield Study(study, space)
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


def _open_storage(url: str) -> Any:
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
