"""One entrant while its arena runs: its run, its scores, and what is recorded of it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from backtrack.arena.geometry import geometry_of, num_parameters, num_trainable
from backtrack.arena.preparing import folder_of
from backtrack.errors import FailureError, RunError
from backtrack.point import Point
from backtrack.recipe import ClusterSection
from backtrack.records import Method
from backtrack.records.arena import Entrant
from backtrack.run.directory import Run
from backtrack.selection.measure.evaluator import Evaluator
from backtrack.selection.stats.scores import RoleScores

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.arena.preparing import Outcome
    from backtrack.recipe.arena import EntrantSpec
    from backtrack.records.arena import Paradigm
    from backtrack.selection.stats.table import ScoreTable

RECORDS = ("trajectory/index.jsonl", "measurements.jsonl", "diagnosis.jsonl")
"""Files of a run that grow as it gets further."""


class LiveEntrant:
    """An entrant under one seed while its arena runs.

    Attributes:
        spec: What the entrant is.
        folder: Directory of its run.
        failure: Why it failed; None if it did not.
        train_seconds: Wall time of training, by this process or an earlier one; None if unknown.
        measure_seconds: Wall time of measuring, by this process or an earlier one; None if
            unknown.
    """

    def __init__(self, spec: EntrantSpec, last: Entrant | None) -> None:
        """Take times of the entrant's last record, if there is one."""
        self.spec = spec
        self.folder = folder_of(spec)
        self.failure: str | None = None
        self.train_seconds = last.train_seconds if last else None
        self.measure_seconds = last.measure_seconds if last else None
        self._run: Run | None = None

    @property
    def run(self) -> Run:
        """Its run.

        Raises:
            FailureError: It was not prepared, or that failed.
        """
        if self._run is None:
            raise FailureError(f"{self.folder}: the run is not trained and measured yet.")
        return self._run

    @property
    def is_prepared(self) -> bool:
        return self._run is not None

    @property
    def recorded_bytes(self) -> int:
        """Size of all that its run has recorded."""
        paths = (self.folder / name for name in RECORDS)
        return sum(path.stat().st_size for path in paths if path.is_file())

    def take(self, outcome: Outcome) -> None:
        """Take what became of it where it was prepared."""
        self.failure = outcome.failure
        if outcome.failure is None:
            try:
                self._run = Run.open(self.folder)
            except RunError as error:
                self.failure = f"{error} Do all nodes share this folder under this path?"
        self.train_seconds = outcome.train_seconds or self.train_seconds
        self.measure_seconds = outcome.measure_seconds or self.measure_seconds

    @cached_property
    def evaluator(self) -> Evaluator:
        """Reads and measures scores of the run."""
        return Evaluator(self.run, self.spec.recipe, None, None, ClusterSection())

    @cached_property
    def table(self) -> ScoreTable:
        """Scores on the selection items, base and final checkpoint among them.

        Raises:
            FailureError: Base and final checkpoint are not measured.
        """
        setting = self.evaluator.find_setting("selection")
        if setting is None:
            raise FailureError(f"{self.folder}: base and final checkpoint are not measured yet.")
        return self.evaluator.table(setting)

    def scores(self, table: ScoreTable) -> RoleScores:
        """Scores of a table by role."""
        return RoleScores(table, self.evaluator.section.seed)

    @property
    def ends(self) -> tuple[int, int]:
        """Columns of base and final checkpoint in the table."""
        return self.table.column(Point.base()), self.table.column(self.run.final)

    def record(self, arena: Path) -> Entrant:
        """What is known of the entrant before it is compared.

        Args:
            arena: Directory of the arena.
        """
        run, spec = self._run, self.spec
        return Entrant(
            name=spec.name,
            seed=None if spec.run else spec.seed,
            paradigm=paradigm_of(spec),
            method=self._method(),
            run=str(self.folder.relative_to(arena)),
            state="failed" if self.failure else "trained" if run else "waiting",
            failure=self.failure,
            num_trainable=num_trainable(run) if run else None,
            num_parameters=num_parameters(run) if run else None,
            num_steps=run.final.step if run else None,
            final=run.final if run else None,
            geometry=geometry_of(run) if run else {},
            train_seconds=self.train_seconds,
            measure_seconds=self.measure_seconds,
        )

    def _method(self) -> Method:
        section = self.spec.recipe.method
        if section is not None:
            return Method(kind=section.kind, settings=section.model_dump(exclude={"kind"}))
        return self._run.manifest.method if self._run else Method(kind="unknown")


def paradigm_of(spec: EntrantSpec) -> Paradigm:
    """How an entrant's checkpoints are trained."""
    if spec.run is not None:
        return "adopted"
    return spec.recipe.paradigm
