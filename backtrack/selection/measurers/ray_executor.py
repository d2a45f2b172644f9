"""Measure by actors of a Ray cluster, each with a model of its own.

Promised: a request whose actor dies, alone or with its node, is answered by another; an actor that
died is replaced as soon as the cluster has room. An actor whose objectives, form or curve differ
from the first one's is left out, and said so. However a command ends, its actors end with it.
Not promised: that actors decode for several points at once, as one process does; what is decoded
along differs from what is decoded alone by rounding only.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from typing_extensions import override

from backtrack.errors import BacktrackError, EngineError
from backtrack.selection.measurers.executor import Executor
from backtrack.selection.measurers.measurer import Facts, Measured, Measurer, Request
from backtrack.selection.measurers.ray_cluster import (
    SECONDS_UNTIL_NOTE,
    RayCluster,
    cause_of,
    note_lack,
    options_of,
    ray_library,
)
from backtrack.selection.measurers.remote_measurer import RemoteMeasurer
from backtrack.selection.measurers.run_copy import files_to_carry, run_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backtrack.point import Point
    from backtrack.recipe import ChoosingRecipe, ClusterSection
    from backtrack.records import CurveName, Form
    from backtrack.run.directory import Run

Value = TypeVar("Value")
Asked = ParamSpec("Asked")

logger = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Actors that may die over one request until the search gives up, or one after the other while
they start until they are not replaced."""


class RayExecutor(Executor):
    """Actors of a Ray cluster; they are started when something must be measured."""

    def __init__(self, run: Run, choosing: ChoosingRecipe | None, cluster: ClusterSection) -> None:
        """Take what the actors are to be; start nothing."""
        self.num_measurers = cluster.actors
        self._run, self._choosing, self._cluster = run, choosing, cluster
        self._facts: Facts | None = None
        self._files: dict[str, Any] | None = None
        self._connection = RayCluster(cluster)
        self._starting: dict[Any, Any] = {}
        self._free: list[Any] = []
        self._busy: dict[Any, tuple[Any, Request]] = {}
        self._at: dict[Any, Point] = {}
        self._deaths: Counter[Request | None] = Counter()

    @property
    @override
    def is_built(self) -> bool:
        return self._facts is not None

    @property
    @override
    def form_and_curve(self) -> tuple[Form, CurveName] | None:
        return None if self._facts is None else (self._facts.form, self._facts.curve)

    @override
    def measured(
        self, requests: Sequence[Request], on_begin: Callable[[Request], None]
    ) -> Iterator[Measured]:
        if not requests:
            return
        self._start()
        left = list(requests)
        try:
            while left or self._busy:
                while left and self._free:
                    on_begin(self._give_next(left))
                measured = self._wait(left)
                if measured is not None:
                    yield measured
        finally:
            if self._busy:  # an error, or the caller stopped: nobody will take the answers
                self.close()

    @override
    def ask(
        self,
        method: Callable[Concatenate[Measurer, Asked], Value],
        *args: Asked.args,
        **kwargs: Asked.kwargs,
    ) -> Value:
        ray = ray_library()
        self._start()
        if method is Measurer.facts:
            return self._facts  # type: ignore[return-value]  # what every actor answered
        for _ in range(MAX_DEATHS):
            if not self._busy:
                self._wait_for_one()
            actor = self._free[0] if self._free else next(iter(self._busy.values()))[0]
            try:
                return _value(ray.get(actor.apply.remote(method, *args)))  # type: ignore[no-any-return]
            except ray.exceptions.RayActorError as error:
                logger.warning("an actor died: %s", cause_of(error))
                if actor in self._free:  # a busy one's request is taken back by `_wait`
                    self._free.remove(actor)
                    self._replace(actor)
        raise EngineError(_DIED.format(what=method.__name__, number=MAX_DEATHS))

    @override
    def close(self) -> None:
        busy = [actor for actor, _ in self._busy.values()]
        for actor in (*self._starting.values(), *self._free, *busy):
            ray_library().kill(actor)
        self._starting, self._free, self._busy, self._at = {}, [], {}, {}
        self._files = None
        self._connection.disconnect()

    def _start(self) -> None:
        """Start the actors, unless they are there, and wait until one is ready."""
        if self._free or self._busy or self._starting:
            return
        self._connection.connect()
        for _ in range(self._cluster.actors):
            self._start_actor()
        self._wait_for_one()

    def _start_actor(self) -> None:
        path = self._run.path.resolve()
        remote = ray_library().remote(RemoteMeasurer).options(**options_of(self._cluster))
        actor = remote.remote(str(path), run_digest(path), self._choosing)
        self._starting[actor.prepare.remote(None)] = actor

    def _give_next(self, left: list[Request]) -> Request:
        """Give a free actor a request: of the point it is at, else of one nobody is at."""
        held = {request.point for _, request in self._busy.values()}
        for actor in self._free:
            request = next((r for r in left if r.point == self._at.get(actor)), None)
            if request is not None:
                break
        else:
            actor = self._free[0]
            request = next((r for r in left if r.point not in held), left[0])
        self._free.remove(actor)
        left.remove(request)
        self._at[actor] = request.point
        self._busy[actor.apply.remote(Measurer.measure, request)] = actor, request
        return request

    def _wait(self, left: list[Request]) -> Measured | None:
        """Wait until one actor is ready, has answered or died; return the answer if it has one."""
        ray = ray_library()
        (reference,), _ = ray.wait([*self._busy, *self._starting], num_returns=1)
        if reference in self._starting:
            self._receive_actor(reference)
            return None
        actor, request = self._busy.pop(reference)
        try:
            measured = ray.get(reference)
        except ray.exceptions.RayActorError as error:
            self._count_death(request, error)
            left.insert(0, request)
            self._replace(actor)
            return None
        self._free.append(actor)
        answer: Measured = _value(measured)
        return answer

    def _receive_actor(self, reference: Any) -> None:
        """Take an actor that is ready, has died or cannot measure."""
        ray = ray_library()
        actor = self._starting.pop(reference)
        try:
            facts = ray.get(reference)
        except ray.exceptions.RayActorError as error:
            self._note_start_death(actor, error)
            return
        if facts is None:
            self._starting[actor.prepare.remote(self._sent_files())] = actor
            return
        self._facts = self._facts or (facts if isinstance(facts, Facts) else None)
        if facts == self._facts:
            self._deaths.pop(None, None)
            self._free.append(actor)
            return
        ray.kill(actor)
        if isinstance(facts, BacktrackError):
            if not (self._free or self._busy or self._starting):
                raise facts
            logger.warning("an actor is left out: %s", facts)
        else:
            logger.warning(
                "an actor is left out: its objectives, form or curve are not those of the first "
                "one. Are documents and libraries the same on every node?"
            )

    def _wait_for_one(self) -> None:
        """Wait until one actor is ready; say what the cluster lacks where that takes long."""
        ray = ray_library()
        timeout: float | None = SECONDS_UNTIL_NOTE
        while self._starting and not self._free:
            done, _ = ray.wait(list(self._starting), num_returns=1, timeout=timeout)
            for reference in done:
                self._receive_actor(reference)
            if not done:
                note_lack("actor", self._cluster)
                timeout = None

    def _note_start_death(self, actor: Any, error: Any) -> None:
        """Replace an actor that died before it was ready, until that is of no use.

        Raises:
            EngineError: No actor is left.
        """
        self._deaths[None] += 1
        logger.warning("an actor died while it started: %s", cause_of(error))
        is_unable = error.actor_init_failed  # another one would be too
        if not is_unable and self._deaths[None] < MAX_DEATHS:
            self._replace(actor)
        elif not (self._free or self._busy or self._starting):
            number = self._deaths[None]
            died = _DIED.format(what="starting", number=number)
            raise EngineError(
                _UNABLE.format(cause=cause_of(error)) if is_unable else died
            ) from error

    def _count_death(self, request: Request, error: Exception) -> None:
        """Give up a request over which actors die again and again.

        Raises:
            EngineError: It was once too often.
        """
        self._deaths[request] += 1
        logger.warning("an actor died: %s", cause_of(error))
        if self._deaths[request] >= MAX_DEATHS:
            what = f"{request.objective} at {request.point}"
            raise EngineError(_DIED.format(what=what, number=MAX_DEATHS)) from error

    def _replace(self, actor: Any) -> None:
        """Start another actor for one that died or is not reached any more."""
        ray = ray_library()
        ray.kill(actor)
        self._at.pop(actor, None)
        self._start_actor()

    def _sent_files(self) -> dict[str, Any]:
        """References to the contents of the run's files, put into the object store once."""
        ray = ray_library()
        if self._files is None:
            names = files_to_carry(self._run)
            self._files = {name: ray.put((self._run.path / name).read_bytes()) for name in names}
        return self._files


_DIED = (
    "{what}: {number} actors died over it, one after the other. Out of memory? `ray logs` and the "
    "dashboard say more. What was measured is recorded; the same command resumes."
)
_UNABLE = (
    "no actor could begin: {cause}. Each node needs the same version of backtrack, and the "
    "modules that the recipe names; do not change them while a command runs. "
    "`cluster.runtime_env` can bring them."
)


def _value(answer: Any) -> Any:
    if isinstance(answer, BacktrackError):
        raise answer
    return answer
