"""A connection to a Ray cluster: to one that runs, or to one started here that ends with it."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import contextmanager
from math import ceil
from typing import TYPE_CHECKING, Any

from backtrack.errors import EngineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backtrack.recipe import ClusterSection

logger = logging.getLogger(__name__)

SECONDS_UNTIL_NOTE = 30.0
"""Wait for a first process after which it is said what the cluster lacks."""


class RayCluster:
    """The cluster that a `cluster` section names, once connected."""

    def __init__(self, section: ClusterSection) -> None:
        """Take the section; connect to nothing."""
        self._section = section
        self._is_ray_ours = False

    def connect(self) -> Any:
        """Ray, connected to the cluster; starts one on this machine where none is named.

        Raises:
            UsageError: Ray is not installed.
            EngineError: The cluster does not answer.
        """
        ray, section = ray_library(), self._section
        if ray.is_initialized():
            return ray
        options: dict[str, Any] = {"address": section.address}
        if section.address is None:
            # Without `local`, Ray joins whatever cluster runs on this machine.
            options = {"address": "local", "include_dashboard": False}
            num_cpus = ceil(section.actors * section.cpus_per_actor)
            options["num_cpus"] = max(num_cpus, os.cpu_count() or 1)
        with _signals_as_they_are():
            try:
                ray.init(**options, log_to_driver=False, logging_level="error")
            except Exception as error:  # a node that starts too slowly raises `Exception` itself
                raise EngineError(
                    f"Ray at {section.address or 'this machine'} does not answer: {error} "
                    "Is it running (`ray status`), and reachable from here?"
                ) from error
        self._is_ray_ours = True
        return ray

    def disconnect(self) -> None:
        """End the connection, and with it all that was started over it; Ray too if it is ours."""
        if self._is_ray_ours:
            ray_library().shutdown()
            self._is_ray_ours = False


def options_of(section: ClusterSection) -> dict[str, Any]:
    """What one process of a section takes of the cluster that Ray is connected to."""
    num_gpus = ray_library().cluster_resources().get("GPU", 0)
    return {
        "num_cpus": section.cpus_per_actor,
        "num_gpus": gpus_of_one(section, num_gpus),
        "resources": section.resources or None,
        "runtime_env": section.runtime_env or None,
    }


def gpus_of_one(section: ClusterSection, num_gpus: float) -> float:
    """GPUs of one process where the cluster has `num_gpus`."""
    if section.gpus_per_actor != "auto":
        return section.gpus_per_actor
    return 1 / ceil(section.actors / num_gpus) if num_gpus else 0


def note_lack(what: str, section: ClusterSection) -> None:
    """Say what the cluster has while `what` is not ready."""
    logger.warning(
        "no %s is ready yet: they load their models, or wait for room. Each takes %s CPUs, "
        "%s GPUs and %s; free are %s.",
        what, section.cpus_per_actor, section.gpus_per_actor,
        section.resources or "nothing else", ray_library().available_resources(),
    )  # fmt: skip


def cause_of(error: Exception) -> str:
    """What an error of Ray's says happened: what was raised over there, if something was."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if any("Traceback (most recent" in line for line in lines) else lines[0]


def ray_library() -> Any:
    """Ray, which is an extra.

    Raises:
        UsageError: It is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "working by several processes or on a cluster needs Ray: "
            "pip install 'backtrack-llm[ray]'."
        ) from error
    return ray


@contextmanager
def _signals_as_they_are() -> Iterator[None]:
    """Keep this process's own handler of SIGTERM, which Ray replaces."""
    try:
        before = signal.getsignal(signal.SIGTERM)
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
