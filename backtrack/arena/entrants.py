"""One entrant while its arena runs: train or adopt, measure, diagnose; each step resumes."""

from __future__ import annotations

import math
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtrack.errors import FailureError
from backtrack.point import Point
from backtrack.records import Method
from backtrack.records.arena import Entrant
from backtrack.records.diagnosis import Diagnosis, ModuleGeometry, mean_metrics
from backtrack.run.adopt import adopt
from backtrack.run.checkpoint_reader import base_folder, shapes
from backtrack.run.checkpoint_writer import is_adapter
from backtrack.run.directory import MANIFEST, Run
from backtrack.run.files import read_lines, read_record
from backtrack.run.finding import is_run
from backtrack.selection.measure.evaluator import Evaluator
from backtrack.selection.stats.scores import RoleScores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backtrack.recipe.arena import DiagnoseSection, EntrantSpec
    from backtrack.records.arena import Paradigm
    from backtrack.selection.stats.table import ScoreTable

    OnStep = Callable[[str], None]

COMMAND = "backtrack arena"
NOT_TRAINED = ("vera_A", "vera_B", "pvera_A", "pvera_B", "randlora_A", "randlora_B", "ranknum")
"""Parts of names of adapter tensors that are saved but never trained."""
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
        self.folder = Path(spec.recipe.output) / spec.label
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

    def prepare(self, diagnosis: DiagnoseSection | None, on_step: OnStep) -> None:
        """Train or adopt the run, measure and diagnose it, as far as that is not done.

        Args:
            diagnosis: How its final checkpoint is diagnosed; None if it is not.
            on_step: Told what is done next.

        Raises:
            BacktrackError: A step failed; what was done before it stays.
        """
        begin = time.perf_counter()
        is_to_train = self._trains and not self._is_trained()
        run = self._open(on_step)
        trained = time.perf_counter()
        is_to_measure = not (run.path / "selection.json").is_file()
        self._measure(run, on_step)
        measured = time.perf_counter()
        # The geometry of another entrant's checkpoints counts once, with that entrant.
        if diagnosis is not None and self.spec.like is None:
            _diagnose(run, diagnosis.num_prompts, on_step)
        self._run = run
        if is_to_train:
            self.train_seconds = trained - begin
        if is_to_measure:
            self.measure_seconds = measured - trained

    @cached_property
    def evaluator(self) -> Evaluator:
        """Reads and measures scores of the run."""
        return Evaluator(self.run, self.spec.recipe, None, None)

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

    @property
    def _trains(self) -> bool:
        """Whether the checkpoints are its own, rather than adopted or another entrant's."""
        return self.spec.run is None and self.spec.like is None

    def _is_trained(self) -> bool:
        from backtrack.train.trainers.resume import is_finished

        return (self.folder / MANIFEST).is_file() and is_finished(Run.open(self.folder))

    def _open(self, on_step: OnStep) -> Run:
        """The run, trained or adopted if it is not yet."""
        if self._trains:
            from backtrack.train.trainers.train import train

            on_step("training")
            return train(
                self.spec.recipe, resume=True,
                on_progress=lambda p: on_step(f"training, step {p.done} of {p.total}"),
            )  # fmt: skip
        if is_run(self.folder):
            return Run.open(self.folder)
        on_step("adopting")
        source = Path(self.spec.run or self.folder.parent / str(self.spec.like))
        if is_run(source):
            # `adopt` reads a folder of checkpoints, which a run of ours has inside.
            source = source / "trajectory"
        return adopt(
            source,
            base=self.spec.recipe.base.model,
            name=self.spec.label,
            runs=self.folder.parent,
            recipe=self.spec.recipe,
        )

    def _measure(self, run: Run, on_step: OnStep) -> None:
        from backtrack.selection.choice.select import select

        on_step("measuring")
        select(
            run,
            recipe=self.spec.recipe,
            on_progress=lambda p: on_step(f"measuring, {p.done} of {p.total} items"),
            command=COMMAND,
        )


def paradigm_of(spec: EntrantSpec) -> Paradigm:
    """How an entrant's checkpoints are trained."""
    if spec.run is not None:
        return "adopted"
    return spec.recipe.paradigm


def _diagnose(run: Run, num_prompts: int, on_step: OnStep) -> None:
    from backtrack.diagnose.diagnose import Options, diagnose

    if geometry_of(run):
        return
    on_step("diagnosing")
    options = Options(num_prompts=num_prompts, has_path=False)
    diagnose(run, [run.final], options, command=COMMAND)


def geometry_of(run: Run) -> dict[str, float]:
    """Metrics of the final checkpoint, means over modules; empty if it was not diagnosed."""
    from backtrack.diagnose.diagnose import LINES, SUMMARY

    if not (run.path / SUMMARY).is_file():
        return {}
    setting = read_record(run.path / SUMMARY, Diagnosis).setting
    latest = {
        line.module: line
        for line in read_lines(run.path / LINES, ModuleGeometry)
        if line.setting == setting and line.point == run.final and line.spectrum is not None
    }
    return mean_metrics(latest.values())


def num_parameters(run: Run) -> int:
    """Number of parameters of the base; tied ones count once."""
    return _count(shapes(base_folder(run.base)))


def num_trainable(run: Run) -> int:
    """Number of parameters that training moved: an adapter's, or all of a whole model."""
    folder = run.folder(run.final.step)
    if not is_adapter(folder):
        return num_parameters(run)
    saved = shapes(folder)
    return _count({n: s for n, s in saved.items() if not set(n.split(".")) & set(NOT_TRAINED)})


def _count(tensors: Mapping[str, Any]) -> int:
    return sum(math.prod(shape) for shape in tensors.values())
