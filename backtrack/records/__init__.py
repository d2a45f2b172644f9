"""What is written to disk, as plain data that is checked when it is read.

Every record is a frozen pydantic model, so a file edited by hand or cut short is refused with the
field that is wrong. Nothing here imports torch: a report is drawn on a laptop from these alone.

    record       words and shapes that all share
    run          manifest and checkpoints
    measurement  objectives and per-item scores
    selection    a choice: candidates, bounds, report rows, differences
    sweep        the rule's answers at every weight
    diagnosis    geometry of an update, module by module
    arena        several runs under one rule
"""

from backtrack.records.measurement import Measurement, ObjectiveInfo
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

__all__ = [
    "ROLES",
    "Axis",
    "BaseModelReference",
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
    "Split",
    "Storage",
]
