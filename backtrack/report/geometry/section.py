"""The page's part on geometry: what `backtrack diagnose` left on record, drawn and tabled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backtrack.records.diagnosis import Diagnosis, ModuleGeometry
from backtrack.run.files import read_lines, read_record

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.report.geometry.rows import Table

TITLES = {
    "profiles": "Where the update acts: retention and adaptation by singular direction",
    "drift": "Who feels it: drift by block of layers, on general and target prompts",
    "activations": "What survives of the representation, location by location",
    "path": "Strength, drift and Procrustes residual of each block along alpha",
    "forgetting": "Geometry against measured forgetting, a mark a point",
}


@dataclass(frozen=True)
class Geometry:
    """What of a diagnosis stands in the page.

    Attributes:
        specs: Drawings by name, as Vega-Lite.
        blocks: Strength and drift of each block of layers.
        notes: Cautions of the diagnosis.
    """

    specs: dict[str, dict[str, Any]]
    blocks: Table
    notes: tuple[str, ...]

    @property
    def charts(self) -> list[tuple[str, str]]:
        """Id and caption of each drawing."""
        return [(f"geometry-{name}", TITLES[name]) for name in self.specs]


def read_geometry(run_path: Path) -> Geometry | None:
    """The last diagnosis of a run; none where there is none.

    Raises:
        RunError: Its files are damaged.
    """
    from backtrack.report.geometry import figures as geometry
    from backtrack.report.geometry import rows as geometry_rows

    path = run_path / "diagnosis.json"
    if not path.exists():
        return None
    diagnosis = read_record(path, Diagnosis)
    found = {
        (line.point, line.module): line
        for line in read_lines(run_path / "diagnosis.jsonl", ModuleGeometry)
        if line.setting == diagnosis.setting
    }
    lines = tuple(found.values())
    return Geometry(
        geometry.specs(diagnosis, lines), geometry_rows.by_block(diagnosis, lines), diagnosis.notes
    )
