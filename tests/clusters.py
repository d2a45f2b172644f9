"""Real Ray clusters of three nodes on one machine, and faults in the middle of work.

    unshare -n sh -c 'ip link set lo up; exec python -m pytest -n 0 -m ray'

keeps Ray on loopback, as `.ci/run` does; without it Ray listens on the machine's own address.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def three_nodes() -> Iterator[Any]:
    """Three nodes of one CPU each, and this process connected to them."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = str(ROOT)  # the nodes' processes inherit it
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    try:
        for _ in range(3):
            add_node(nodes, num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def add_node(cluster: Any, **resources: int) -> Any:
    """Add a node, again if need be: Ray gives up one that a busy machine starts too slowly."""
    unneeded = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    for _ in range(3):
        with suppress(Exception):  # which is what Ray raises
            return cluster.add_node(**unneeded, **resources)
    return cluster.add_node(**unneeded, **resources)


def processes(folder: Path) -> set[int]:
    """The ids of all processes that have measured; see `tests.selection.watched`."""
    return {int(path.name) for path in folder.iterdir()}


def first_process(folder: Path, *, other_than: set[int] = frozenset()) -> int:  # type: ignore[assignment]
    """The id of a process that measures, once there is one."""
    deadline = time.monotonic() + 300  # they load their models on a busy machine
    while time.monotonic() < deadline:
        if found := processes(folder) - other_than:
            return min(found)
        time.sleep(0.05)
    raise AssertionError("nothing was measured")


def require_ended(pids: set[int], seconds: float) -> None:
    """Fail unless all processes end soon."""
    deadline = time.monotonic() + seconds
    while left := {pid for pid in pids if is_alive(pid)}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return _status(pid)[:1] not in ([], ["Z"])


def _parent(pid: int) -> int | None:
    """The id of the parent of a process that runs."""
    return int(_status(pid)[1]) if is_alive(pid) else None


def _status(pid: int) -> list[str]:
    """State, parent and so on; nothing of a process that is gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return status.rpartition(")")[2].split()


def lose_a_node_that_measures(cluster: Any, folder: Path) -> None:
    """Remove a node, not the first one, by a process that measures there."""
    raylets = {n.all_processes["raylet"][0].process.pid: n for n in cluster.worker_nodes}
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for pid in processes(folder):
            if node := raylets.get(_parent(pid)):
                cluster.remove_node(node)
                return
        time.sleep(0.05)
    raise AssertionError("no node but the first measures")


class Fault:
    """Does something in a thread once something is measured."""

    def __init__(self, folder: Path, action: Callable[[int], object]) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(lambda: action(first_process(folder)))

    def join(self) -> None:
        """Wait until it is done; raise what it raised."""
        self._done.result()
        self._pool.shutdown()
