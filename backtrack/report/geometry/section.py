"""The page's section on geometry: charts and tables of the last diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backtrack.records.diagnosis import Diagnosis, ModuleGeometry
from backtrack.run.files import read_lines, read_record

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.report.geometry.rows import Table

TITLES = {
    "profiles": "Retention and adaptation by singular direction",
    "drift": "Drift by block of layers, on general and target prompts",
    "activations": "Change of the representation by location",
    "path": "Strength, drift and Procrustes residual of each block along alpha",
    "forgetting": "Geometry against measured forgetting, a mark per point",
}


@dataclass(frozen=True)
class Geometry:
    """A diagnosis as shown on the page.

    Attributes:
        specs: Vega-Lite specifications by name.
        blocks: Strength and drift of each block of layers.
        notes: Cautions of the diagnosis.
    """

    specs: dict[str, dict[str, Any]]
    blocks: Table
    notes: tuple[str, ...]

    @property
    def charts(self) -> list[tuple[str, str]]:
        """Id and caption of each chart."""
        return [(f"geometry-{name}", TITLES[name]) for name in self.specs]


def read_geometry(run_path: Path) -> Geometry | None:
    """The last diagnosis of a run; None if there is none.

    Raises:
        RunError: Its files are damaged.
    """
    from backtrack.report.geometry import figures as geometry
    from backtrack.report.geometry import rows as geometry_rows

    path = run_path / "diagnosis.json"
    if not path.exists():
        return None
    diagnosis = read_record(path, Diagnosis)
    by_module = {
        (line.point, line.module): line
        for line in read_lines(run_path / "diagnosis.jsonl", ModuleGeometry)
        if line.setting == diagnosis.setting
    }
    lines = tuple(by_module.values())
    return Geometry(
        geometry.specs(diagnosis, lines),
        geometry_rows.by_block(diagnosis.points, lines),
        diagnosis.notes,
    )
