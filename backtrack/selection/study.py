"""Optuna: the study on disk, and the samplers. The only home of it.

The study is where workers meet and what optuna-dashboard shows. Each unit of work is a trial:
RUNNING while a worker measures it, then PRUNED where its point has but a part of the items, and
COMPLETE, with both roles' scores and the constraints, where it has all. Scores of objectives, the
share of items and the point's name are user attributes. Values are as they read, never negated.

Promised: a unit is measured by one worker at a time. Of two that claim it at once the trial of the
lower number stays. A worker gives a sign of life while it measures; without one for
`search.patience_seconds` its trial is failed and the unit is free again. Where the storage is a
server, trials carry the measurements themselves, so machines that share nothing else have them.

A sampler is asked in a study of its own in memory, made anew from what is measured by then, so its
proposals rest on the latest estimate of every point and not on what was once told; points under
way elsewhere are in it as running. Its seed is the recipe's with the number of trials before.
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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from backtrack.errors import RunError, UsageError
from backtrack.point import Point
from backtrack.records import Measurement
from backtrack.selection.space import (
    ALPHA,
    ALPHA_STEP,
    MULTIPLIER_STEP,
    PROFILE,
    STEP,
    Space,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from backtrack.recipe import SearchSection
    from backtrack.records import Direction
    from backtrack.selection.racing import Unit
    from backtrack.selection.space import Value

STUDY = "study.db"
POINT, PART, ORIGIN, SLOT = "point", "part", "origin", "slot"
CARRIED = "measurement"

MAX_ATTEMPTS = 10
_FEWEST_FOR_MODEL = 4
"""Points before the Gaussian process takes over from chance; the anchors are usually more."""


@dataclass(frozen=True)
class Past:
    """A measured point, as a sampler is told of it.

    Attributes:
        place: Values by parameter.
        values: Both roles' scores.
        constraints: At most 0 where met, by name.
        notes: What the sampler itself left on its trial.
    """

    place: Mapping[str, Value]
    values: Sequence[float]
    constraints: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A unit a worker has taken.

    Attributes:
        unit: The unit.
        trial_id: Of its trial.
        number: Likewise.
    """

    unit: Unit
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
        return {_unit_of(trial): trial for trial in self._trials(TrialState.RUNNING)}

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
        self, unit: Unit, slot: int | None = None, notes: Mapping[str, Any] | None = None
    ) -> Claim | None:
        """Take a unit; none where another worker was faster."""
        attributes: dict[str, Any] = {
            POINT: str(unit.point),
            "canonical": unit.point.model_dump_json(),
            PART: unit.part,
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
            and (_unit_of(trial)[0] == unit.point or slot == trial.user_attrs.get(SLOT, -1))
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

    def settle(self, claim: Claim, past: Past | None, attributes: Mapping[str, Any]) -> None:
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

    def add(self, point: Point, origin: str, past: Past, attributes: Mapping[str, Any]) -> None:
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
        place = self._space.place_of(point)
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


def _unit_of(trial: FrozenTrial) -> tuple[Point, int]:
    point = Point.model_validate_json(trial.user_attrs["canonical"])
    return point, int(trial.user_attrs[PART])


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions."""
    found: dict[str, BaseDistribution] = {
        STEP: IntDistribution(0, len(space.steps) - 1),
        ALPHA: FloatDistribution(0.0, space.highest, step=ALPHA_STEP),
    }
    if len(space.profiles) > 1:
        found[PROFILE] = CategoricalDistribution(space.profiles)
    for name in space.multipliers:
        found[name] = FloatDistribution(
            space.lowest_multiplier, space.highest_multiplier, step=MULTIPLIER_STEP
        )
    return found


def propose(
    space: Space,
    section: SearchSection,
    directions: Sequence[Direction],
    history: Sequence[Past],
    running: Sequence[Mapping[str, Value]],
    num_before: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sampler's next place, and what it notes on its trial.

    Args:
        space: What it draws from.
        section: Names the sampler, and the seed.
        directions: Of the roles.
        history: What is measured, in the order of measuring.
        running: Places under way elsewhere.
        num_before: Proposals before this one.
    """
    where = distributions(space)
    sampler = make_sampler(section, num_before)
    study = optuna.create_study(directions=list(directions), sampler=sampler)
    for past in history:
        study.add_trial(
            create_trial(
                params=dict(past.place),
                distributions=where,
                values=list(past.values),
                constraints=dict(past.constraints) or None,
                system_attrs=dict(past.notes),
            )
        )
    for place in running:
        study.add_trial(
            create_trial(state=TrialState.RUNNING, params=dict(place), distributions=where)
        )
    # A low-discrepancy sequence knows its place only by what it was asked before.
    asks = num_before + 1 if section.sampler == "qmc" else 1
    number = [study.ask(where) for _ in range(asks)][-1].number
    trial = study.get_trials(deepcopy=False)[number]
    return dict(trial.params), dict(trial.system_attrs)


def make_sampler(section: SearchSection, num_before: int) -> BaseSampler:
    """The recipe's sampler for the trial after `num_before` others.

    A scrambled low-discrepancy sequence needs one seed throughout; the others get one a trial.
    """
    seed = int(hashlib.sha256(f"{section.seed}/{num_before}".encode()).hexdigest()[:7], 16)
    match section.sampler:
        case "gp":
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=_FEWEST_FOR_MODEL, warn_independent_sampling=False
            )
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, multivariate=True)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        case "qmc":
            return optuna.samplers.QMCSampler(
                seed=section.seed, scramble=True, warn_independent_sampling=False
            )
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)


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


def study_name(parts: object) -> str:
    """A name for all that makes trials comparable: run, space and setting."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
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
