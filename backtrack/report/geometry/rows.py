"""A diagnosis as plain rows, for tables and charts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backtrack import formatting
from backtrack.formatting import CORRELATION, NO_NUMBER
from backtrack.records.diagnosis import mean_metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backtrack.point import Point
    from backtrack.records import Interval, Role
    from backtrack.records.diagnosis import Correlation, ModuleGeometry

PROMPT_ROLES: tuple[Role, ...] = ("general", "target")
Row = dict[str, Any]
Table = tuple[list[str], list[list[str]]]
"""Headings and cells."""

LABELS = {
    "strength": "strength ||dW|| / ||W0||",
    "spectrum.effective_rank": "effective rank of dW",
    "spectrum.stable_rank": "stable rank of dW",
    "spectrum.retention_fluctuation": "fluctuation of retention",
    "spectrum.adaptation_fluctuation": "fluctuation of adaptation",
    "spectrum.retention_deviation": "deviation of retention from its moving average",
    "spectrum.adaptation_deviation": "deviation of adaptation",
    "drift.absolute": "drift E||dW h0||\N{SUPERSCRIPT TWO}",
    "drift.relative": "drift, over the base's output",
    "drift.update_normed": "drift, over the update's size",
    "activations.procrustes": "Procrustes residual",
    "activations.procrustes_centred": "Procrustes residual, centred",
    "activations.gram": "Gram distortion",
    "activations.cka": "CKA",
    "activations.cosine_drift": "cosine drift",
    "activations.norm_drift": "norm drift",
    "activations.log_norm_drift": "log norm drift",
    "activations.subspace_distance": "principal subspace distance",
    "activations.subspace_distance_32": "of 32 dimensions",
    "activations.subspace_distance_64": "of 64 dimensions",
    "divergence": "KL(base || point), nats a token",
}


def label(name: str) -> str:
    """A metric's name in words; its `/role` becomes the prompts it was measured on."""
    metric, _, role = name.partition("/")
    return LABELS.get(metric, metric) + (f", {role} prompts" if role else "")


def summary(point: Point, lines: Sequence[ModuleGeometry]) -> Table:
    """Each metric's mean over modules at a point, and a column per role of its prompts."""
    found = mean_metrics(of_point(lines, point))
    suffixes = ("", *(f"/{role}" for role in PROMPT_ROLES))
    heads = ["mean over modules", str(point), *(f"on {role} prompts" for role in PROMPT_ROLES)]
    rows = [
        [label(n), *(_number(found[n + s]) if n + s in found else "" for s in suffixes)]
        for n in LABELS
        if any(n + s in found for s in suffixes)
    ]
    return heads, rows


BY_BLOCK = ("strength", "drift.relative/general", "drift.relative/target")


def by_block(points: Iterable[Point], lines: Sequence[ModuleGeometry]) -> Table:
    """Strength and drift of each block of layers, point by point."""
    blocks = sorted({line.block for line in lines if line.block is not None})
    heads = ["block"]
    columns: list[list[str]] = []
    for point in points:
        metrics = [
            mean_metrics(ln for ln in of_point(lines, point) if ln.block == b) for b in blocks
        ]
        for name in BY_BLOCK:
            heads.append(f"{_SHORT[name]}, {point}")
            columns.append([_number(by_name.get(name)) for by_name in metrics])
    return heads, [[str(b), *cells] for b, *cells in zip(blocks, *columns, strict=True)]


_SHORT = {
    "strength": "strength",
    "drift.relative/general": "general drift",
    "drift.relative/target": "target drift",
}


def correlation_table(found: Sequence[Correlation]) -> Table:
    """Correlation of each metric with forgetting, with intervals; general prompts first."""
    heads = ["goes with forgetting", "read", "Pearson", "Spearman", "n"]
    order = list(LABELS)
    ranked = sorted(found, key=lambda c: (order.index(c.metric), c.role != "general"))
    rows = [
        [label(c.metric), c.role or "", _interval(c.pearson), _interval(c.spearman), str(c.num)]
        for c in ranked
        if c.pearson is not None
    ]
    return heads, rows


def of_point(lines: Iterable[ModuleGeometry], point: Point) -> list[ModuleGeometry]:
    """The lines of one point."""
    return [line for line in lines if line.point == point]


def _number(value: float | None) -> str:
    return NO_NUMBER if value is None else f"{value:.3g}"


def _interval(value: Interval | None) -> str:
    if value is None:
        return NO_NUMBER
    return formatting.interval(value, CORRELATION, is_signed=True)
