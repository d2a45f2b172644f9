"""Records: the plain data written to disk, validated when read.

Every record is a frozen pydantic model, so an edited or truncated file is refused with the name of
the wrong field. Nothing here imports torch: a report can be drawn on a laptop from records alone.

    record       base class and types that all records share
    run          manifest and checkpoint index
    measurement  objectives and per-item scores
    setting      all that decides scores but the point
    search       a search that was begun
    selection    a choice: candidates, bounds, report rows, differences
    sweep        choices at every weight
    diagnosis    geometry of an update, module by module
    arena        several runs compared under one rule
    gate         bounds on a candidate, and what is shown of them
    export       what an export was made of; points of a front, exported to be served
"""

from backtrack.records.measurement import BITS, FRACTION, NATS, Measurement, ObjectiveInfo
from backtrack.records.record import (
    ROLES,
    Axis,
    CurveName,
    Direction,
    Form,
    Interval,
    Record,
    Role,
    Split,
)
from backtrack.records.run import BaseModelReference, CheckpointEntry, Manifest, Method, Storage
from backtrack.records.setting import BatchSize, Setting

__all__ = [
    "BITS",
    "FRACTION",
    "NATS",
    "ROLES",
    "Axis",
    "BaseModelReference",
    "BatchSize",
    "CheckpointEntry",
    "CurveName",
    "Direction",
    "Form",
    "Interval",
    "Manifest",
    "Measurement",
    "Method",
    "ObjectiveInfo",
    "Record",
    "Role",
    "Setting",
    "Split",
    "Storage",
]
