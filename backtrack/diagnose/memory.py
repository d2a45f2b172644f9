"""Group points and modules so that each group's sums fit into memory."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import torch

from backtrack.free_memory import free_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backtrack.diagnose.modules import LinearModule
    from backtrack.point import Point

SHARE_OF_FREE = 0.4
"""Share of the device's free memory that sums and decompositions may use."""


def point_groups(
    points: Sequence[Point],
    modules: Sequence[LinearModule],
    num_rows: int,
    device: torch.device,
) -> Iterator[Sequence[Point]]:
    """Points in groups whose sums of outputs fit.

    Args:
        points: The points.
        modules: The modules whose outputs are summed at each point.
        num_rows: Rows of outputs, one for each token.
        device: Holds the sums.
    """
    # Each point has four sums of outer products, or its rows while they are fewer.
    one = 8 * sum(m.shape[0] * min(4 * m.shape[0], num_rows) for m in modules)
    count = max(1, int(budget_bytes(device) // one) - 1)
    for start in range(0, len(points), count):
        yield points[start : start + count]


def module_groups(
    modules: Sequence[LinearModule], num_rows: int, device: torch.device
) -> Iterator[list[LinearModule]]:
    """Modules in groups whose weights, moments and singular directions fit.

    Args:
        modules: The modules.
        num_rows: Most rows of inputs of a role, one for each token.
        device: Holds them.
    """
    budget, used = budget_bytes(device), 0
    group: list[LinearModule] = []
    for module in modules:
        out, into = module.shape
        numbers = 3 * out * into + 2 * min(num_rows, into) * into + min(out, into) * (out + into)
        if group and used + 4 * numbers > budget:
            yield group
            used, group = 0, []
        used += 4 * numbers
        group.append(module)
    if group:
        yield group


def budget_bytes(device: torch.device) -> int:
    """Memory that one group may use."""
    return int(SHARE_OF_FREE * free_bytes(device))


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far: of the GPU, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
