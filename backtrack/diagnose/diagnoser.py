"""Compute the lines of a diagnosis: where an update acts, module by module and point by point.

Memory is bounded: modules and points are processed in groups that fit into a share of the free
memory. Not promised: that a single module larger than that share fits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from peft import PeftModel

from backtrack.diagnose.correlation import correlations
from backtrack.diagnose.hooks import input_moments, output_pairs
from backtrack.diagnose.memory import module_groups, peak_bytes, point_groups
from backtrack.diagnose.modules import choose, linear_modules, locations
from backtrack.diagnose.points import default_points, distinct, forgetting, notes, path_points
from backtrack.diagnose.prompts import find_prompts
from backtrack.diagnose.weights import BaseModule, SharedFields
from backtrack.evaluate.objectives.items import digest
from backtrack.evaluate.torch_model import TorchModel, at_base
from backtrack.point import Point
from backtrack.recipe import ClusterSection
from backtrack.records.diagnosis import ActivationGeometry, Diagnosis, ModuleGeometry
from backtrack.records.record import now
from backtrack.run.files import append_line, read_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from backtrack.diagnose.modules import LinearModule
    from backtrack.path.placement import Placement
    from backtrack.records import Role
    from backtrack.run.directory import Run

    OnProgress = Callable[[int, int, str], None]
    Key = tuple[Point, str]
    ByModule = dict[str, list[ModuleGeometry]]
    """Lines at all points by module's name."""
    Compute = Callable[[Collection[str]], Iterator[ByModule]]

LINES = "diagnosis.jsonl"
SUMMARY = "diagnosis.json"


@dataclass(frozen=True)
class Options:
    """What is diagnosed, and how.

    Attributes:
        modules: Paths, patterns or locations; empty for all linear modules.
        locations: Modules whose activations are compared; empty for the eight depth locations.
        prompts: Files of prompts by role, used instead of the objectives' own.
        num_prompts: Most prompts of each role.
        mode: How spectra are computed.
        has_path: Whether to diagnose the points along the path too.
        seed: Seed of the sample of prompts and of the random projections.
        cluster: Actors that diagnose the modules; by default this process does.
    """

    modules: Sequence[str] = ()
    locations: Sequence[str] = ()
    prompts: Mapping[Role, Path] = field(default_factory=dict)
    num_prompts: int = 64
    mode: Literal["auto", "exact", "randomized"] = "auto"
    has_path: bool = True
    seed: int = 0
    cluster: ClusterSection = field(default_factory=ClusterSection)


class Diagnoser:
    """A run with the points, modules and prompts of its diagnosis."""

    def __init__(
        self, run: Run, placement: Placement, points: Sequence[Point], options: Options
    ) -> None:
        self._run = run
        self._placement = placement
        self._options = options
        self._points = distinct(points or default_points(run))
        self._path = path_points(run) if options.has_path else ()
        self._all_points = distinct([*self._points, *self._path])
        available = linear_modules(placement.model)
        self._modules = choose(available, options.modules)
        self._locations = _locations(available, self._modules, options.locations)
        recipe = run.choosing.recipe if run.choosing else None
        self._prompts = find_prompts(
            recipe, options.prompts, placement, options.num_prompts, options.seed
        )
        self._shared = SharedFields(placement.form, placement.curve, self._digest())

    @property
    def _adapter(self) -> str | None:
        model: Any = self._placement.model
        return model.active_adapter if isinstance(model, PeftModel) else None

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._placement.model.device
        return device

    def _digest(self) -> str:
        """Hash of every setting two lines must share to be comparable."""
        return digest(
            self._run.base.fingerprint,
            {step: self._run.entry(step).contents for step in self._run.steps},
            [self._placement.form, self._placement.curve],
            [prompts.digest for prompts in self._prompts],
            [self._options.mode, self._options.seed, *ActivationGeometry.model_fields],
        )[:16]

    def lines(self, compute: Compute, on_progress: OnProgress) -> tuple[ModuleGeometry, ...]:
        """One line for every module at every point; recorded lines are reused.

        Args:
            compute: Gives the lines of some modules at all points.
            on_progress: See `diagnose`.
        """
        lines = self._recorded()
        missing = [
            module.name
            for module in self._modules
            if not all(self._has(lines, point, module) for point in self._all_points)
        ]
        done, total = len(self._modules) - len(missing), len(self._modules)
        on_progress(done, total, "activations")
        for by_module in compute(missing) if missing else ():
            for name, new_lines in by_module.items():
                text = "\n".join(line.model_dump_json() for line in new_lines)
                append_line(self._run.path / LINES, text)
                lines |= {(line.point, line.module): line for line in new_lines}
                done += 1
                on_progress(done, total, name)
        return tuple(lines[p, m.name] for p in self._all_points for m in self._modules)

    def computed(self, names: Collection[str]) -> Iterator[ByModule]:
        """Lines of the named modules at all points, in groups that fit into memory."""
        modules = [module for module in self._modules if module.name in names]
        with torch.no_grad():
            activations = self._activations([m for m in modules if self._is_compared(m)])
        num_rows = max(prompts.record.num_tokens for prompts in self._prompts)
        for group in module_groups(modules, num_rows, self._device):
            with torch.no_grad():
                by_module = self._diagnose_group(group, activations)
            yield by_module

    def _recorded(self) -> dict[Key, ModuleGeometry]:
        """Recorded lines of this setting."""
        lines = read_lines(self._run.path / LINES, ModuleGeometry)
        comparable = (line for line in lines if line.setting == self._shared.setting)
        return {(line.point, line.module): line for line in comparable}

    def _has(
        self, lines: Mapping[Key, ModuleGeometry], point: Point, module: LinearModule
    ) -> bool:
        """Whether a module has a line at a point with all that is to be computed there."""
        line = lines.get((point, module.name))
        if line is None or (point in self._points and line.spectrum is None):
            return False
        return bool(line.activations) or not self._is_compared(module)

    def _is_compared(self, module: LinearModule) -> bool:
        """Whether a module's activations are compared."""
        return module.name in self._locations.values()

    def _activations(
        self, modules: Sequence[LinearModule]
    ) -> dict[Key, dict[Role, ActivationGeometry]]:
        """Geometry of the modules' outputs at every point."""
        geometry: dict[Key, dict[Role, ActivationGeometry]] = {}
        for prompts in self._prompts if modules else ():
            num_rows = prompts.record.num_tokens
            for points in point_groups(self._all_points, modules, num_rows, self._device):
                pairs = output_pairs(self._placement, modules, prompts, points)
                for name, pair in pairs.items():
                    for point, numbers in zip(points, pair.geometry(), strict=True):
                        geometry.setdefault((point, name), {})[prompts.role] = numbers
        return geometry

    def _diagnose_group(
        self,
        group: Sequence[LinearModule],
        activations: Mapping[Key, dict[Role, ActivationGeometry]],
    ) -> ByModule:
        """Lines of some modules by name; the model is placed once at the base and each point."""
        self._placement.place(Point.base())
        moments = {p.role: input_moments(self._placement, group, p) for p in self._prompts}
        bases = [
            BaseModule(
                module,
                {role: by_name[module.name] for role, by_name in moments.items()},
                self._shared,
                self._options.mode,
                self._options.seed,
            )
            for module in group
        ]
        lines: ByModule = {module.name: [] for module in group}
        for point in self._all_points:
            self._placement.place(point)
            for base in bases:
                name = base.module.name
                lines[name].append(
                    base.geometry_at(
                        point,
                        self._adapter,
                        activations.get((point, name), {}),
                        has_spectrum=point in self._points,
                    )
                )
        return lines

    def _divergences(self) -> Callable[[Point], dict[str, float]]:
        """Give KL(base || point) on each role's prompts, by `divergence/role`, in nats a token."""
        placement = self._placement
        visit = partial(at_base, placement)
        model = TorchModel(placement.model, placement.tokenizer, "auto", visit)

        def at(point: Point) -> dict[str, float]:
            placement.place(point)
            found: dict[str, float] = {}
            for prompts in self._prompts:
                each = model.divergences([list(ids) for ids in prompts.ids])
                mean = np.average(each, weights=[len(ids) for ids in prompts.ids])
                found[f"divergence/{prompts.role}"] = float(mean)
            return found

        return at

    def summary(self, lines: Sequence[ModuleGeometry], seconds: float, command: str) -> Diagnosis:
        """The diagnosis that the lines give."""
        selection = self._run.selection()
        lost = forgetting(selection, self._all_points, lines, self._divergences())
        return Diagnosis(
            run=self._run.manifest.name,
            points=self._points,
            path=self._path,
            modules=tuple(module.name for module in self._modules),
            locations=self._locations,
            prompts=tuple(prompts.record for prompts in self._prompts),
            mode=self._options.mode,
            setting=self._shared.setting,
            forgetting=lost,
            correlations=correlations(lost, "points"),
            notes=tuple(notes(self._run.path, selection, lines)),
            seed=self._options.seed,
            seconds=seconds,
            peak_bytes=peak_bytes(self._device),
            command=command,
            created=now(),
        )


def _locations(
    available: Sequence[LinearModule], chosen: Sequence[LinearModule], patterns: Sequence[str]
) -> dict[str, str]:
    """Paths of the modules whose activations are compared, by location or by their own path."""
    paths = {module.name for module in chosen}
    by_depth = {name: path for name, path in locations(available).items() if path in paths}
    if not patterns:
        return by_depth or {module.name: module.name for module in chosen[:8]}
    names = {path: name for name, path in by_depth.items()}
    return {names.get(m.name, m.name): m.name for m in choose(chosen, patterns)}
