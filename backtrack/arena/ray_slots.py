"""Prepare entrants as tasks of a Ray cluster, each with its own GPUs.

Promised: a task that died, alone or with its node, is reported as a death, so that the arena can
start it again elsewhere. However the arena ends, its tasks end with it, and what they started.
Not promised: that a node which is cut off, but lives on, stops writing before another begins.

Each task writes the run of its entrant, so all nodes must see the arena's folder under one path;
relative paths mean there what they mean here.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from backtrack.arena.preparing import Outcome, prepare
from backtrack.arena.slots import Slots
from backtrack.selection.measurers.ray_cluster import (
    SECONDS_UNTIL_NOTE,
    RayCluster,
    cause_of,
    note_lack,
    options_of,
    ray_library,
)

if TYPE_CHECKING:
    from backtrack.arena.slots import OnStep
    from backtrack.recipe import ClusterSection
    from backtrack.recipe.arena import DiagnoseSection, EntrantSpec

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_STEPS = 0.5
"""How often the driver asks what the tasks do."""


class RaySlots(Slots):
    """Tasks of a Ray cluster; it is connected to when an entrant is started."""

    def __init__(self, cluster: ClusterSection) -> None:
        self.number = cluster.actors
        self._section = cluster
        self._connection = RayCluster(cluster)
        self._running: dict[Any, EntrantSpec] = {}
        self._board: Any = None
        self._note_at: float | None = None

    @override
    def start(self, spec: EntrantSpec, diagnosis: DiagnoseSection | None) -> None:
        ray = self._connection.connect()
        if self._board is None:
            self._board = _start_board()
        self._note_at = self._note_at or time.monotonic() + SECONDS_UNTIL_NOTE
        # A new process for each: no library's state, and no memory of a GPU, is left to the next.
        # The arena counts deaths and starts again, so Ray does not.
        task = ray.remote(max_calls=1, max_retries=0)(_prepare_there)
        task = task.options(**options_of(self._of_one(spec)))
        self._running[task.remote(spec, diagnosis, Path.cwd(), self._board)] = spec

    @override
    def wait(self, on_step: OnStep) -> tuple[str, Outcome]:
        ray = ray_library()
        done: list[Any] = []
        while not done:
            running = list(self._running)
            done, _ = ray.wait(running, num_returns=1, timeout=SECONDS_BETWEEN_STEPS)
            self._pass_on(on_step)
        spec = self._running.pop(done[0])
        return spec.label, _outcome(done[0])

    @override
    def close(self) -> None:
        ray = ray_library()
        for reference in self._running:
            ray.cancel(reference, force=True)
        if self._board is not None:
            ray.kill(self._board)
        self._running, self._board = {}, None
        self._connection.disconnect()

    def _of_one(self, spec: EntrantSpec) -> ClusterSection:
        """What one entrant takes: by its own section, but among the arena's slots."""
        return spec.recipe.cluster.model_copy(update={"actors": self.number})

    def _pass_on(self, on_step: OnStep) -> None:
        """Tell what the tasks did since the last call; say what the cluster lacks if nothing."""
        steps = ray_library().get(self._board.take.remote())
        running = {spec.label for spec in self._running.values()}
        for label in running & steps.keys():  # a task's last step may come after its end
            on_step(label, steps[label])
        if steps:
            self._note_at = float("inf")
        elif self._note_at is not None and time.monotonic() > self._note_at:
            self._note_at = float("inf")
            note_lack("entrant", self._of_one(next(iter(self._running.values()))))


class _Board:
    """An actor beside the driver that has the newest step of each task."""

    def __init__(self) -> None:
        self._steps: dict[str, str] = {}

    def note(self, label: str, step: str) -> None:
        self._steps[label] = step

    def take(self) -> dict[str, str]:
        """The steps since the last call, by label."""
        steps, self._steps = self._steps, {}
        return steps


def _start_board() -> Any:
    ray = ray_library()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()


def _prepare_there(
    spec: EntrantSpec, diagnosis: DiagnoseSection | None, folder: Path, board: Any
) -> Outcome:
    """Prepare an entrant in a task, in the driver's working directory."""
    try:
        os.chdir(folder)
    except OSError as error:
        return Outcome(
            failure=f"{folder} is not seen from {os.uname().nodename} ({error.strerror}). Each "
            "node writes the runs of its entrants: start the arena in a folder that all share."
        )
    return prepare(spec, diagnosis, lambda step: board.note.remote(spec.label, step))


def _outcome(reference: Any) -> Outcome:
    ray = ray_library()
    try:
        outcome: Outcome = ray.get(reference)
    except (ray.exceptions.RayTaskError, ray.exceptions.RuntimeEnvSetupError) as error:
        # Before anything of ours ran: a package or the environment that a node does not have.
        return Outcome(failure=f"it could not begin: {cause_of(error)}")
    except ray.exceptions.RayError as error:
        return Outcome(death=cause_of(error))
    return outcome
