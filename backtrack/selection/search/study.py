"""The Optuna study of a search: it coordinates workers and is what optuna-dashboard shows.

Each evaluation is a trial: RUNNING while a worker measures it, then COMPLETE, with both roles'
scores and the constraints, if its point has all items, else PRUNED. The point's name, its rung,
the objectives' scores and the share of items are user attributes. Values are in the unit of their
role, never negated.

Promised: an evaluation is measured by one worker at a time. If two claim it at once, the trial of
the lower number stays. A worker records a heartbeat while it measures; without one for
`search.patience_seconds` its trial is failed and the evaluation is free again. If the storage is a
server, trials also carry the measurements, for workers that do not share the run's folder.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from backtrack.errors import RunError, UsageError
from backtrack.point import Point
from backtrack.records import Measurement
from backtrack.run.files import parse_record
from backtrack.selection.search.sampler import distributions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from optuna.trial import FrozenTrial

    from backtrack.records import Direction
    from backtrack.selection.search.racing import Evaluation
    from backtrack.selection.search.sampler import ObservedPoint
    from backtrack.selection.search.space import Space

STUDY = "study.db"
POINT, RUNG, ORIGIN, SLOT = "point", "rung", "origin", "slot"
CARRIED = "measurement"
"""First word of the user attributes that carry measurements."""

MAX_ATTEMPTS = 10
"""Tries to open a storage whose tables other workers create at the same time."""


@dataclass(frozen=True)
class Claim:
    """An evaluation that one worker measures.

    Attributes:
        evaluation: The point and its rung.
        trial_id: Optuna's id of the trial, unique in the storage.
        number: Optuna's number of the trial, unique in the study.
    """

    evaluation: Evaluation
    trial_id: int
    number: int


class Ledger:
    """The study of one search: which worker measures what, and the results."""

    def __init__(self, study: optuna.Study, storage: Any, space: Space, *, is_carrier: bool):
        self._study = study
        self._storage = storage
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._space = space
        self._distributions = distributions(space)
        self._is_carrier = is_carrier
        self._seen: set[int] = set()

    def clear_stale(self, *, is_alone: bool) -> None:
        """Fail trials of dead workers: all running ones if this worker is the only one."""
        if is_alone:
            for trial in self._trials(TrialState.RUNNING):
                self._study.tell(trial.number, state=TrialState.FAIL)
        else:
            optuna.storages.fail_stale_trials(self._study)

    def under_way(self) -> dict[tuple[Point, int], FrozenTrial]:
        """Running trials by point and rung."""
        return {_point_and_rung(trial): trial for trial in self._trials(TrialState.RUNNING)}

    def slots(self) -> set[int]:
        """Indices of the sampler's proposals that are running or measured."""
        states = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        return {t.user_attrs[SLOT] for t in self._trials(*states) if SLOT in t.user_attrs}

    def notes(self) -> dict[str, dict[str, Any]]:
        """System attributes the sampler stored with its proposals, by the point's name."""
        trials = self._trials(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        return {
            t.user_attrs[POINT]: t.user_attrs["notes"] for t in trials if "notes" in t.user_attrs
        }

    def claim(
        self,
        evaluation: Evaluation,
        slot: int | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Claim | None:
        """Start the trial of an evaluation; None if another worker was faster.

        Args:
            evaluation: The point and its rung.
            slot: Index among the sampler's proposals, if it proposed the point.
            notes: System attributes the sampler stored with its proposal.
        """
        attributes: dict[str, Any] = {
            POINT: str(evaluation.point),
            "canonical": evaluation.point.model_dump_json(),
            RUNG: evaluation.rung,
            ORIGIN: evaluation.origin,
            "worker": f"{socket.gethostname()}:{os.getpid()}",
        }
        if slot is not None:
            attributes |= {SLOT: slot, "notes": dict(notes or {})}
        trial_id = self._storage.create_new_trial(
            self._study_id, self._template(evaluation.point, attributes, TrialState.RUNNING)
        )
        self._storage.record_heartbeat(trial_id)
        number = self._storage.get_trial_number_from_id(trial_id)
        earlier = [
            trial
            for trial in self._trials(TrialState.RUNNING)
            if trial.number < number
            and (
                _point_and_rung(trial)[0] == evaluation.point
                or slot == trial.user_attrs.get(SLOT, -1)
            )
        ]
        if earlier:
            self._study.tell(number, state=TrialState.FAIL)
            return None
        return Claim(evaluation, trial_id, number)

    @contextmanager
    def alive(self, claim: Claim) -> Iterator[None]:
        """Record heartbeats while a claim is measured; fail its trial on any exception."""
        done = threading.Event()
        interval = self._storage.get_heartbeat_interval()

        def beat() -> None:
            while not done.wait(interval):
                self._storage.record_heartbeat(claim.trial_id)

        thread = threading.Thread(target=beat, daemon=True) if interval else None
        if thread is not None:
            thread.start()
        try:
            yield
        except BaseException:
            self._study.tell(claim.number, state=TrialState.FAIL)
            raise
        finally:
            done.set()
            if thread is not None:
                thread.join()

    def carry(self, claim: Claim, measurements: Sequence[Measurement]) -> None:
        """Store measurements in the trial if the storage is a server, for other machines."""
        if self._is_carrier:
            for m in measurements:
                key = f"{CARRIED} {m.objective.name}"
                self._storage.set_trial_user_attr(claim.trial_id, key, m.model_dump_json())

    def carried(self) -> list[Measurement]:
        """Measurements in trials that ended since the last call."""
        if not self._is_carrier:
            return []
        measurements: list[Measurement] = []
        for trial in self._trials(*TrialState):
            if trial.state.is_finished() and trial.number not in self._seen:
                self._seen.add(trial.number)
                texts = [v for k, v in trial.user_attrs.items() if k.startswith(CARRIED)]
                measurements += [parse_record(text, Measurement) for text in texts]
        return measurements

    def settle(
        self, claim: Claim, observed: ObservedPoint | None, attributes: Mapping[str, Any]
    ) -> None:
        """Close a claim's trial: complete if the point is observed on all items, else pruned."""
        trial = optuna.trial.Trial(self._study, claim.trial_id)
        for key, value in attributes.items():
            trial.set_user_attr(key, value)
        if observed is None:
            self._study.tell(claim.number, state=TrialState.PRUNED)
            return
        for key, value in observed.constraints.items():
            trial.set_constraint(key, value)
        self._study.tell(claim.number, list(observed.values))

    def known(self) -> set[str]:
        """Names of the points with a complete trial."""
        return {trial.user_attrs.get(POINT, "") for trial in self._trials(TrialState.COMPLETE)}

    def add(
        self, point: Point, origin: str, observed: ObservedPoint, attributes: Mapping[str, Any]
    ) -> None:
        """Add a complete trial of a point that was measured without this study."""
        user_attrs = {POINT: str(point), ORIGIN: origin, **attributes}
        self._study.add_trial(
            self._template(
                point, user_attrs, TrialState.COMPLETE, observed.values, observed.constraints
            )
        )

    def add_apart(
        self, name: str, values: Sequence[float], attributes: Mapping[str, object]
    ) -> None:
        """Add a complete trial, without parameters, of a baseline that is not a point."""
        user_attrs = {POINT: name, ORIGIN: "baseline", **attributes}
        self._study.add_trial(create_trial(values=list(values), user_attrs=user_attrs))

    def _template(
        self,
        point: Point,
        attributes: Mapping[str, Any],
        state: TrialState,
        values: Sequence[float] | None = None,
        constraints: Mapping[str, float] | None = None,
    ) -> FrozenTrial:
        """A trial at a point; without parameters if the point lies outside the space."""
        parameters = self._space.parameters_of(point)
        return create_trial(
            state=state,
            params=parameters or {},
            distributions=self._distributions if parameters else {},
            values=list(values) if values is not None else None,
            user_attrs=dict(attributes),
            constraints=dict(constraints) if constraints else None,
        )

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        try:
            return self._study.get_trials(deepcopy=False, states=states)
        except (ValueError, LookupError, RecursionError) as error:  # of what a column holds
            raise StorageInternalError(f"a column is damaged: {error}") from error


def _point_and_rung(trial: FrozenTrial) -> tuple[Point, int]:
    try:
        point = parse_record(trial.user_attrs["canonical"], Point)
        return point, int(trial.user_attrs[RUNG])
    except (ValueError, TypeError, LookupError) as error:
        raise StorageInternalError(f"trial {trial.number} is damaged: {error}") from error


@contextmanager
def open_ledger(
    url: str, name: str, directions: Sequence[Direction], space: Space, patience_seconds: int
) -> Iterator[Ledger]:
    """Open or create the study `name` in a database, which may hold other searches' studies.

    Args:
        url: The database: `sqlite:///FILE`, or `postgresql://...` for several machines.
        name: The study's name.
        directions: The roles' directions.
        space: The search space.
        patience_seconds: Time without a heartbeat after which a worker counts as dead.

    Raises:
        RunError: The database is damaged, or does not answer.
        UsageError: `url` is not a database URL, or its driver is not installed.
    """
    with _named_database(url):
        storage = _open_storage(url, patience_seconds)
        try:
            study = optuna.create_study(
                storage=storage, study_name=name, directions=list(directions), load_if_exists=True
            )
            yield Ledger(study, storage, space, is_carrier=not url.startswith("sqlite"))
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


def _open_storage(url: str, patience_seconds: int) -> Any:
    is_file = url.startswith("sqlite")
    try:
        return _retry_creation(lambda: _storage(url, patience_seconds, is_file=is_file))
    except ImportError as error:
        raise UsageError(
            f"the storage needs a driver that is not installed ({error}). For PostgreSQL: "
            "pip install 'backtrack-llm[postgresql]'."
        ) from error
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise UsageError(
            "the storage is not a database URL. Write postgresql://USER@HOST/NAME with --storage, "
            "or leave it out to use study.db in the run."
        ) from error


def _storage(url: str, patience_seconds: int, *, is_file: bool) -> Any:
    # Workers on one machine wait for each other's writes; a server has its own locks.
    kwargs = {"connect_args": {"timeout": 120}} if is_file else {"pool_pre_ping": True}
    return optuna.storages.RDBStorage(
        _with_driver(url),
        engine_kwargs=kwargs,
        heartbeat_interval=max(patience_seconds // 4, 1),
        grace_period=patience_seconds,
    )


def _retry_creation(make: Callable[[], Any]) -> Any:
    """Retry if another worker that started at the same time has just created the tables."""
    for _ in range(MAX_ATTEMPTS - 1):
        try:
            return make()
        except DatabaseError as error:
            message = str(error.orig).lower()
            if not any(sign in message for sign in ("already exists", "duplicate", "unique")):
                raise
        time.sleep(0.3 * random.random())
    return make()


def _with_driver(url: str) -> str:
    """Name psycopg, the driver of the extra `postgresql`, in a PostgreSQL URL."""
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return f"postgresql+psycopg://{url.removeprefix(scheme)}"
    return url


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
