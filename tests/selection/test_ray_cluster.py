"""Ray that does not start is an error with its cause."""

from __future__ import annotations

from typing import Any

import pytest

from backtrack.errors import EngineError
from backtrack.recipe import ClusterSection
from backtrack.selection.measurers.ray_cluster import RayCluster


def test_ray_that_starts_too_slowly_is_an_error_with_its_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = pytest.importorskip("ray")

    def give_up(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")  # noqa: TRY002  # as Ray

    monkeypatch.setattr(ray, "init", give_up)
    with pytest.raises(EngineError, match="does not answer: The current node timed out"):
        RayCluster(ClusterSection()).connect()
