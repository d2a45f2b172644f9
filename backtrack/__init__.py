"""Find the best point on a fine-tuning path, without training again.

```python
from backtrack import Placement, Point, Run, adopt, search, select, export
from backtrack import CheckpointSaver, TrajectoryCallback  # for a loop, for a Trainer
```
Heavy libraries are imported when one of these names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backtrack.exporter import export
    from backtrack.path.placement import Placement
    from backtrack.point import Point
    from backtrack.run.adopt import adopt
    from backtrack.run.directory import Run
    from backtrack.selection.choice.select import select
    from backtrack.selection.search.driver import search
    from backtrack.train.trajectory.callback import TrajectoryCallback
    from backtrack.train.trajectory.saver import CheckpointSaver

__version__ = "0.1.0"

__all__ = [
    "CheckpointSaver",
    "Placement",
    "Point",
    "Run",
    "TrajectoryCallback",
    "adopt",
    "export",
    "search",
    "select",
]

_HOMES = {
    "CheckpointSaver": "backtrack.train.trajectory.saver",
    "Placement": "backtrack.path.placement",
    "Point": "backtrack.point",
    "Run": "backtrack.run.directory",
    "TrajectoryCallback": "backtrack.train.trajectory.callback",
    "adopt": "backtrack.run.adopt",
    "export": "backtrack.exporter",
    "search": "backtrack.selection.search.driver",
    "select": "backtrack.selection.choice.select",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'backtrack' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
