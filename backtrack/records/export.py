"""Records of exports: what one was made of, and points of a front that were exported to be served.

backtrack.json   of every exported folder: an `Exported`
manifest.json    of an exported front: a `ServedFront`
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from backtrack.point import Point
from backtrack.records.record import Axis, Record, Role

AsForm = Literal["adapter", "merged"]


class Exported(Record):
    """What decides an export's weights and card, and its files: `backtrack.json`.

    Attributes:
        run: The run's name.
        base: The base, a Hub name or a folder.
        model: Digest of the base and of the files that every point has.
        checkpoint: Digest of the point's checkpoint; empty at the base.
        point: The point.
        form: `adapter` or `merged`.
        selection: Digest of the selection whose scores the card has; empty if it has none.
        files: Size in bytes of each file, by its path in the folder.
    """

    run: str
    base: str
    model: str
    checkpoint: str
    point: Point
    form: AsForm
    selection: str = ""
    files: dict[str, int] = Field(default_factory=dict)


class ServedPoint(Record):
    """One adapter of an exported front.

    Attributes:
        name: What a request names as its model.
        folder: The adapter, relative to the exported folder.
        point: The point.
        is_chosen: Whether it is the selection's choice.
        scores: Mean score by objective on the selection items, in the objective's unit.
        target: Target score smoothed over the points, in the unit of its axis.
        general: General score smoothed over the points, in the unit of its axis.
        utility: Smoothed utility at the selection's weight, in points.
        scaled: The point whose adapter, at `scale`, is this one too, for servers that scale an
            adapter themselves; None if no scale of another adapter makes it.
        scale: Factor on the adapter of `scaled`.
    """

    name: str
    folder: str
    point: Point
    is_chosen: bool
    scores: dict[str, float]
    target: float
    general: float
    utility: float
    scaled: str | None = None
    scale: float | None = None


class ServedFront(Record):
    """Points of a front that share one base: `manifest.json` of the exported folder.

    Attributes:
        run: The run's name.
        base: The base, a Hub name or a folder.
        weight: Weight of the target in the utility.
        axes: Unit and direction of the roles' scores.
        points: The points, those that learned most last.
        unserved: What of the adapters vLLM does not read; empty if it reads all.
    """

    run: str
    base: str
    weight: float
    axes: dict[Role, Axis]
    points: tuple[ServedPoint, ...]
    unserved: str = ""
