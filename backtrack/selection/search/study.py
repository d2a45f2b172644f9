"""The study on disk: where workers meet, and what optuna-dashboard shows. Optuna.

Each unit of work is a trial: RUNNING while a worker measures it, then PRUNED where its point has
but a part of the items, and COMPLETE, with both roles' scores and the constraints, where it has
all. Scores of objectives, the share of items and the point's name are user attributes. Values are
as they read, never negated.

Promised: a unit is measured by one worker at a time. Of two that claim it at once the trial of the
lower number stays. A worker gives a sign of life while it measures; without one for
`search.patience_seconds` its trial is failed and the unit is free again. Where the storage is a
server, trials carry the measurements themselves, so machines that share nothing else have them.
"""

from __future__ import annotations

import hashlib
import json
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
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from backtrack.errors import RunError, UsageError
from backtrack.point import Point
from backtrack.records import Measurement
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

MAX_ATTEMPTS = 10


@dataclass(frozen=True)
class Claim:
    """A unit a worker has taken.

    Attributes:
        unit: The unit.
        trial_id: Of its trial.
        number: Likewise.
    """

    unit: Evaluation
    trial_id: int
    number: int


class Ledger:
    """The study of one search: who measures what, and what came of it."""

    def __init__(self, study: optuna.Study, storage: Any, space: Space, *, is_carrier: bool):
        self._study = study
        self._storage = storage
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._space = space
        self._distributions = distributions(space)
        self._is_carrier = is_carrier
        self._seen: set[int] = set()

    def clear_stale(self, *, is_alone: bool) -> None:
        """Fail trials of workers that are gone: all running ones where this worker is alone."""
        if is_alone:
            for trial in self._trials(TrialState.RUNNING):
                self._study.tell(trial.number, state=TrialState.FAIL)
        else:
            optuna.storages.fail_stale_trials(self._study)

    def under_way(self) -> dict[tuple[Point, int], FrozenTrial]:
        """Points and parts being measured, by this worker or others."""
        return {_running_evaluation(trial): trial for trial in self._trials(TrialState.RUNNING)}

    def slots(self) -> set[int]:
        """Which of the sampler's turns are taken."""
        states = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        return {t.user_attrs[SLOT] for t in self._trials(*states) if SLOT in t.user_attrs}

    def notes(self) -> dict[str, dict[str, Any]]:
        """What the sampler left on its proposals, by point."""
        found = self._trials(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
        return {
            t.user_attrs[POINT]: t.user_attrs["notes"] for t in found if "notes" in t.user_attrs
        }

    def claim(
        self, unit: Evaluation, slot: int | None = None, notes: Mapping[str, Any] | None = None
    ) -> Claim | None:
        """Take a unit; none where another worker was faster."""
        attributes: dict[str, Any] = {
            POINT: str(unit.point),
            "canonical": unit.point.model_dump_json(),
            RUNG: unit.rung,
            ORIGIN: unit.origin,
            "worker": f"{socket.gethostname()}:{os.getpid()}",
        }
        if slot is not None:
            attributes |= {SLOT: slot, "notes": dict(notes or {})}
        trial_id = self._storage.create_new_trial(
            self._study_id, self._template(unit.point, attributes, TrialState.RUNNING)
        )
        self._storage.record_heartbeat(trial_id)
        number = self._storage.get_trial_number_from_id(trial_id)
        rivals = [
            trial
            for trial in self._trials(TrialState.RUNNING)
            if trial.number < number
            and (
                _running_evaluation(trial)[0] == unit.point
                or slot == trial.user_attrs.get(SLOT, -1)
            )
        ]
        if rivals:
            self._study.tell(number, state=TrialState.FAIL)
            return None
        return Claim(unit, trial_id, number)

    @contextmanager
    def alive(self, claim: Claim) -> Iterator[None]:
        """Give signs of life for a claim; fail its trial on any exception."""
        done = threading.Event()
        interval = self._storage.get_heartbeat_interval()

        def beat() -> None:
            while not done.wait(interval):
                self._storage.record_heartbeat(claim.trial_id)

        heart = threading.Thread(target=beat, daemon=True) if interval else None
        if heart is not None:
            heart.start()
        try:
            yield
        except BaseException:
            self._study.tell(claim.number, state=TrialState.FAIL)
            raise
        finally:
            done.set()
            if heart is not None:
                heart.join()

    def carry(self, claim: Claim, measurements: Sequence[Measurement]) -> None:
        """Put measurements where other machines find them."""
        if self._is_carrier:
            for m in measurements:
                key = f"{CARRIED} {m.objective.name}"
                self._storage.set_trial_user_attr(claim.trial_id, key, m.model_dump_json())

    def carried(self) -> list[Measurement]:
        """Measurements of other workers' trials that were not asked for before."""
        if not self._is_carrier:
            return []
        found: list[Measurement] = []
        for trial in self._trials(*TrialState):
            if trial.state.is_finished() and trial.number not in self._seen:
                self._seen.add(trial.number)
                texts = [v for k, v in trial.user_attrs.items() if k.startswith(CARRIED)]
                found += [Measurement.model_validate_json(text) for text in texts]
        return found

    def settle(
        self, claim: Claim, past: ObservedPoint | None, attributes: Mapping[str, Any]
    ) -> None:
        """Close a claim: complete where the point has its values, pruned where items miss."""
        trial = optuna.trial.Trial(self._study, claim.trial_id)
        for key, value in attributes.items():
            trial.set_user_attr(key, value)
        if past is None:
            self._study.tell(claim.number, state=TrialState.PRUNED)
            return
        for key, value in past.constraints.items():
            trial.set_constraint(key, value)
        self._study.tell(claim.number, list(past.values))

    def known(self) -> set[str]:
        """Points the study holds with their values."""
        return {trial.user_attrs.get(POINT, "") for trial in self._trials(TrialState.COMPLETE)}

    def add(
        self, point: Point, origin: str, past: ObservedPoint, attributes: Mapping[str, Any]
    ) -> None:
        """Tell the study of a point that was measured without it."""
        told = {POINT: str(point), ORIGIN: origin, **attributes}
        self._study.add_trial(
            self._template(point, told, TrialState.COMPLETE, past.values, past.constraints)
        )

    def add_apart(
        self, name: str, values: Sequence[float], attributes: Mapping[str, object]
    ) -> None:
        """Tell the study of a model that is no point, such as a baseline; it has no parameters."""
        told = {POINT: name, ORIGIN: "baseline", **attributes}
        self._study.add_trial(create_trial(values=list(values), user_attrs=told))

    def _template(
        self,
        point: Point,
        attributes: Mapping[str, Any],
        state: TrialState,
        values: Sequence[float] | None = None,
        constraints: Mapping[str, float] | None = None,
    ) -> FrozenTrial:
        """A trial at a point; without parameters where the point lies outside the space."""
        place = self._space.parameters_of(point)
        return create_trial(
            state=state,
            params=dict(place) if place else {},
            distributions=self._distributions if place else {},
            values=list(values) if values is not None else None,
            user_attrs=dict(attributes),
            constraints=dict(constraints) if constraints else None,
        )

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)


def _running_evaluation(trial: FrozenTrial) -> tuple[Point, int]:
    point = Point.model_validate_json(trial.user_attrs["canonical"])
    return point, int(trial.user_attrs[RUNG])


@contextmanager
def open_ledger(
    url: str, name: str, directions: Sequence[Direction], space: Space, patience_seconds: int
) -> Iterator[Ledger]:
    """The study `name` in a database; it holds those of other searches beside it.

    Args:
        url: Of the database: `sqlite:///FILE`, or `postgresql://...` for several machines.
        name: Of the study.
        directions: Of the roles.
        space: What a sampler draws from.
        patience_seconds: Without a sign of life for so long a worker is taken to be gone.

    Raises:
        RunError: The database is damaged, or does not answer.
        UsageError: The URL is none, or its driver is not installed.
    """
    storage = _open_storage(url, patience_seconds)
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=list(directions), load_if_exists=True
        )
        yield Ledger(study, storage, space, is_carrier=not url.startswith("sqlite"))
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _open_storage(url: str, patience_seconds: int) -> Any:
    is_file = url.startswith("sqlite")
    try:
        return _made_once(lambda: _storage(url, patience_seconds, is_file=is_file))
    except ImportError as error:
        raise UsageError(
            f"the storage needs a driver that is not installed ({error}). For PostgreSQL: "
            "pip install 'backtrack[postgresql]'."
        ) from error
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise UsageError(
            "the storage is no database URL. Write postgresql://USER@HOST/NAME with --storage, "
            "or leave it out to keep study.db in the run."
        ) from error
    except DatabaseError as error:
        if is_file:
            raise RunError(
                f"{url.removeprefix('sqlite:///')} is damaged ({error.orig}). Delete it: every "
                "measurement is in measurements.jsonl, and the search goes on from there."
            ) from error
        first = str(error.orig).strip().splitlines()[0]
        raise RunError(
            f"the database of --storage does not answer: {first}. Is it running, and reachable "
            "from here? What was measured is in measurements.jsonl."
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


def _made_once(make: Callable[[], Any]) -> Any:
    """Workers that start together all make the tables; those that come second try again."""
    for _ in range(MAX_ATTEMPTS - 1):
        try:
            return make()
        except DatabaseError as error:
            said = str(error.orig).lower()
            if not any(sign in said for sign in ("already exists", "duplicate", "unique")):
                raise
        time.sleep(0.3 * random.random())
    return make()


def _with_driver(url: str) -> str:
    """The URL with the driver we install."""
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return f"postgresql+psycopg://{url.removeprefix(scheme)}"
    return url


def study_name(rungs: object) -> str:
    """A name for all that makes trials comparable: run, space and setting."""
    digest = hashlib.sha256(json.dumps(rungs, sort_keys=True).encode()).hexdigest()
    return f"search-{digest[:12]}"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's reports of each trial, and its word that a feature is new, from the user."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
