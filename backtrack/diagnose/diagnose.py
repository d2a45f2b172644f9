"""Diagnose a run: where its update acts at some points, and how that goes with what was forgotten.

Promised: lines of `diagnosis.jsonl` are written module by module as they are found, and a second
diagnosis of the same points, prompts and modules takes them as they stand. Memory is bounded: a
share of what is free is taken at a time, by going through modules and points in groups.
Not promised: that a module larger than that share fits.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import psutil
import torch
from peft import PeftModel

from backtrack.diagnose.correlation import correlations
from backtrack.diagnose.hooks import input_moments, output_pairs
from backtrack.diagnose.modules import choose, linear_modules, locations
from backtrack.diagnose.points import default_points, distinct, forgetting, notes, path_points
from backtrack.diagnose.prompts import find_prompts
from backtrack.diagnose.weights import Look, Stamp
from backtrack.evaluate.objectives.items import digest
from backtrack.path.placement import Placement
from backtrack.point import Point
from backtrack.records.diagnosis import Diagnosis, ModuleGeometry
from backtrack.run.directory import append_line, now, read_lines, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from backtrack.diagnose.modules import LinearModule
    from backtrack.diagnose.prompts import Prompts
    from backtrack.records import Role
    from backtrack.records.diagnosis import ActivationGeometry
    from backtrack.run.directory import Run

    OnProgress = Callable[[int, int, str], None]
    Key = tuple[Point, str]

LINES = "diagnosis.jsonl"
SUMMARY = "diagnosis.json"
SHARE_OF_FREE = 0.4
"""Of the device's free memory that sums and decompositions may take at a time."""


@dataclass(frozen=True)
class Options:
    """How to look.

    Attributes:
        modules: Paths, patterns or locations; none stands for all linear modules.
        locations: Modules whose activations are compared; none stands for the eight depths.
        prompts: Files of prompts by role, in place of the objectives' own.
        num_prompts: At most, a role.
        mode: Of the spectra.
        has_path: Also look along the path.
        seed: Of the draw of prompts and the random projections.
    """

    modules: Sequence[str] = ()
    locations: Sequence[str] = ()
    prompts: Mapping[Role, Path] = field(default_factory=dict)
    num_prompts: int = 64
    mode: Literal["auto", "exact", "randomized"] = "auto"
    has_path: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """A diagnosis and its lines, point by point in the model's order."""

    diagnosis: Diagnosis
    lines: tuple[ModuleGeometry, ...]


def diagnose(
    run: Run,
    points: Sequence[Point] = (),
    options: Options | None = None,
    *,
    placement: Placement | None = None,
    on_progress: OnProgress | None = None,
    command: str = "",
) -> Found:
    """Look at points of a run's path, and write `diagnosis.jsonl` and `diagnosis.json`.

    Args:
        run: A run with at least one checkpoint.
        points: Where; the final checkpoint and the chosen point, if there is one, by default.
        options: How.
        placement: The run's live model; loaded if not given.
        on_progress: Called as modules are done: how many, of how many, which.
        command: What the user typed, for the record.

    Raises:
        UsageError: A module, a location or a role's prompts are not there.
        PointError: The run has no such point.
        ObjectiveError: An objective's documents cannot be read.
    """
    begin = time.perf_counter()
    work = _Diagnoser(run, placement or _place(run), points, options or Options())
    lines = work.lines(on_progress or (lambda _done, _total, _what: None))
    diagnosis = work.summary(lines, time.perf_counter() - begin, command)
    write_atomically(run.path / SUMMARY, diagnosis.model_dump_json(indent=2) + "\n")
    return Found(diagnosis, lines)


def _place(run: Run) -> Placement:
    section = run.recipe.placement if run.recipe else None
    return Placement(run, **section.model_dump()) if section else Placement(run)


class _Diagnoser:
    """A run, the points to look at, and what they are looked at through."""

    def __init__(
        self, run: Run, placement: Placement, points: Sequence[Point], options: Options
    ) -> None:
        self._run = run
        self._placement = placement
        self._options = options
        self._points = distinct(points or default_points(run))
        self._path = path_points(run) if options.has_path else ()
        self._every = distinct([*self._points, *self._path])
        there = linear_modules(placement.model)
        self._modules = choose(there, options.modules)
        self._locations = _named(there, self._modules, options.locations)
        recipe = run.measured_recipe()
        self._prompts = find_prompts(
            recipe, options.prompts, placement, options.num_prompts, options.seed
        )
        self._stamp = Stamp(placement.form, placement.curve, self._digest())

    @property
    def _adapter(self) -> str | None:
        model: Any = self._placement.model
        return model.active_adapter if isinstance(model, PeftModel) else None

    def _digest(self) -> str:
        """Names all that lines must share to be compared, but points and modules."""
        return digest(
            self._run.base.fingerprint,
            {step: self._run.entry(step).sha256 for step in self._run.steps},
            [self._placement.form, self._placement.curve],
            [prompts.digest for prompts in self._prompts],
            [self._options.mode, self._options.seed],
        )[:16]

    @torch.no_grad()
    def lines(self, report: OnProgress) -> tuple[ModuleGeometry, ...]:
        """A line for every module at every point; those on record are not taken anew."""
        known = self._known()
        missing = [
            m for m in self._modules if not all(self._has(known, p, m) for p in self._every)
        ]
        done, total = len(self._modules) - len(missing), len(self._modules)
        report(done, total, "activations")
        activations = self._activations([m for m in missing if self._is_compared(m)])
        for group in self._groups(missing):
            for name, found in self._of_group(group, activations).items():
                lines = "\n".join(line.model_dump_json() for line in found)
                append_line(self._run.path / LINES, lines)
                known |= {(line.point, line.module): line for line in found}
                done += 1
                report(done, total, name)
        return tuple(known[p, m.name] for p in self._every for m in self._modules)

    def _known(self) -> dict[Key, ModuleGeometry]:
        lines = read_lines(self._run.path / LINES, ModuleGeometry)
        ours = (line for line in lines if line.setting == self._stamp.setting)
        return {(line.point, line.module): line for line in ours}

    def _has(
        self, known: Mapping[Key, ModuleGeometry], point: Point, module: LinearModule
    ) -> bool:
        line = known.get((point, module.name))
        if line is None or (point in self._points and line.spectrum is None):
            return False
        return bool(line.activations) or not self._is_compared(module)

    def _is_compared(self, module: LinearModule) -> bool:
        return module.name in self._locations.values()

    def _activations(
        self, modules: Sequence[LinearModule]
    ) -> dict[Key, dict[Role, ActivationGeometry]]:
        """Geometry of outputs at every point, in groups of points that memory holds."""
        found: dict[Key, dict[Role, ActivationGeometry]] = {}
        for prompts in self._prompts if modules else ():
            for points in self._affordable(modules, prompts):
                pairs = output_pairs(self._placement, modules, prompts, points)
                for name, pair in pairs.items():
                    for point, geometry in zip(points, pair.geometry(), strict=True):
                        found.setdefault((point, name), {})[prompts.role] = geometry
        return found

    def _affordable(
        self, modules: Sequence[LinearModule], prompts: Prompts
    ) -> Iterator[tuple[Point, ...]]:
        """Points in groups whose sums fit."""
        rows = prompts.record.num_tokens
        # Of each point four sums of outer products, or its rows while they are fewer.
        one = 8 * sum(m.shape[0] * min(4 * m.shape[0], rows) for m in modules)
        count = max(1, int(_budget_bytes(self._device) // one) - 1)
        for start in range(0, len(self._every), count):
            yield self._every[start : start + count]

    def _groups(self, modules: Sequence[LinearModule]) -> Iterator[list[LinearModule]]:
        """Modules in groups whose weights, moments and directions fit."""
        rows = max(prompts.record.num_tokens for prompts in self._prompts)
        budget, taken = _budget_bytes(self._device), 0
        group: list[LinearModule] = []
        for module in modules:
            out, into = module.shape
            numbers = 3 * out * into + 2 * min(rows, into) * into + min(out, into) * (out + into)
            if group and taken + 4 * numbers > budget:
                yield group
                taken, group = 0, []
            taken += 4 * numbers
            group.append(module)
        if group:
            yield group

    def _of_group(
        self,
        group: Sequence[LinearModule],
        activations: Mapping[Key, dict[Role, ActivationGeometry]],
    ) -> dict[str, list[ModuleGeometry]]:
        """Lines of some modules, by name; the base is read once, each point visited once."""
        self._placement.place(Point.base())
        moments = {p.role: input_moments(self._placement, group, p) for p in self._prompts}
        looks = [
            Look(
                module,
                {role: found[module.name] for role, found in moments.items()},
                self._stamp,
                self._options.mode,
                self._options.seed,
            )
            for module in group
        ]
        lines: dict[str, list[ModuleGeometry]] = {module.name: [] for module in group}
        for point in self._every:
            self._placement.place(point)
            for look in looks:
                name = look.module.name
                lines[name].append(
                    look.at(
                        point,
                        self._adapter,
                        activations.get((point, name), {}),
                        has_spectrum=point in self._points,
                    )
                )
        return lines

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._placement.model.device
        return device

    def summary(self, lines: Sequence[ModuleGeometry], seconds: float, command: str) -> Diagnosis:
        """What the lines come to."""
        selection = self._run.selection()
        lost = forgetting(selection, self._every, lines)
        return Diagnosis(
            run=self._run.manifest.name,
            points=self._points,
            path=self._path,
            modules=tuple(module.name for module in self._modules),
            locations=self._locations,
            prompts=tuple(prompts.record for prompts in self._prompts),
            mode=self._options.mode,
            setting=self._stamp.setting,
            forgetting=lost,
            correlations=correlations(lost, "points"),
            notes=tuple(notes(selection, lines)),
            seed=self._options.seed,
            seconds=seconds,
            peak_bytes=_peak_bytes(self._device),
            command=command,
            created=now(),
        )


def _named(
    there: Sequence[LinearModule], looked_at: Sequence[LinearModule], asked: Sequence[str]
) -> dict[str, str]:
    """Modules whose activations are compared, by location or by their own path."""
    inside = {module.name for module in looked_at}
    by_depth = {name: path for name, path in locations(there).items() if path in inside}
    if not asked:
        return by_depth or {module.name: module.name for module in looked_at[:8]}
    names = {path: name for name, path in by_depth.items()}
    return {names.get(m.name, m.name): m.name for m in choose(looked_at, asked)}


def _budget_bytes(device: torch.device) -> int:
    free = (
        torch.cuda.mem_get_info(device)[0]
        if device.type == "cuda"
        else psutil.virtual_memory().available
    )
    return int(SHARE_OF_FREE * free)


def _peak_bytes(device: torch.device) -> int:
    """Most memory so far: of the GPU, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
