"""Diagnose modules by actors of a Ray cluster, each with a model of its own.

Promised: an actor that dies, alone or with its node, is started again, with the modules it was at.
However the diagnosis ends, its actors end with it.

Each actor reads the run, so all nodes must see its folder under one path.
"""

from __future__ import annotations

from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtrack.errors import BacktrackError, EngineError, RunError
from backtrack.run.directory import Run
from backtrack.selection.measurers.ray_cluster import (
    RayCluster,
    cause_of,
    options_of,
    ray_library,
)
from backtrack.selection.measurers.run_copy import is_at, run_digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from backtrack.diagnose.diagnoser import ByModule, Options
    from backtrack.point import Point
    from backtrack.recipe import ChoosingRecipe

GROUPS_OF_ONE = 4
"""Groups of modules for each actor: some take longer, and what is done is recorded by group."""
MAX_RESTARTS = 3
"""Of an actor, before the diagnosis ends."""


def lines_by_actors(
    run: Run,
    points: Sequence[Point],
    options: Options,
    names: Collection[str],
) -> Iterator[ByModule]:
    """Lines of the named modules at all points, a group of modules at a time, as they are done.

    Args:
        run: The run.
        points: As `diagnose` takes them.
        options: As `diagnose` takes them.
        names: Modules to diagnose, of those that the options choose.

    Raises:
        UsageError: Ray is not installed.
        EngineError: The cluster does not answer, or actors died again and again.
        RunError: A node does not see the run's folder.
    """
    size = max(ceil(len(names) / (GROUPS_OF_ONE * options.cluster.actors)), 1)
    groups = [list(names)[start : start + size] for start in range(0, len(names), size)]
    with _pool(run, points, options) as pool:
        answers = pool.map_unordered(lambda actor, group: actor.lines.remote(group), groups)
        try:
            for answer in answers:
                if isinstance(answer, BacktrackError):
                    raise answer
                yield answer
        except ray_library().exceptions.RayError as error:
            raise EngineError(
                f"actors died over and over: {cause_of(error)} Out of memory? `ray logs` says "
                "more. Lines that were done are recorded; the same command goes on."
            ) from error


@contextmanager
def _pool(run: Run, points: Sequence[Point], options: Options) -> Iterator[Any]:
    cluster = options.cluster
    connection = RayCluster(cluster)
    ray = connection.connect()
    from ray.util import ActorPool

    remote = ray.remote(_RemoteDiagnoser).options(
        max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS, **options_of(cluster)
    )
    path = run.path.resolve()
    given = str(path), run_digest(path), run.choosing, tuple(points), options
    actors = [remote.remote(*given) for _ in range(cluster.actors)]
    try:
        yield ActorPool(actors)
    finally:
        for actor in actors:
            ray.kill(actor)
        connection.disconnect()


class _RemoteDiagnoser:
    """What runs in an actor; errors raised on purpose are returned, to arrive as they are."""

    def __init__(
        self,
        path: str,
        digest: str,
        choosing: ChoosingRecipe | None,
        points: Sequence[Point],
        options: Options,
    ) -> None:
        self._path, self._digest, self._choosing = Path(path), digest, choosing
        self._points, self._options = points, options
        self._diagnoser: Any = None

    def lines(self, names: Sequence[str]) -> ByModule | BacktrackError:
        try:
            if self._diagnoser is None:
                self._diagnoser = self._made()
            found: ByModule = {}
            for group in self._diagnoser.computed(set(names)):
                found |= group
        except BacktrackError as error:
            return error
        return found

    def _made(self) -> Any:
        from backtrack.diagnose.diagnoser import Diagnoser
        from backtrack.path.placement import place_as_asked

        if not is_at(self._path, self._digest):
            raise RunError(
                f"{self._path}: a node does not see this run. Diagnose it in a folder that all "
                "nodes see under one path."
            )
        run = Run.open(self._path)
        if self._choosing is not None:
            run.choose_by(self._choosing)
        return Diagnoser(run, place_as_asked(run), self._points, self._options)
