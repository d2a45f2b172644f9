"""Compare a module's weight at each point with the base's: norms, spectrum and drift."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch

from backtrack.diagnose.drift import drift
from backtrack.diagnose.spectrum import directions, pick_mode, spectrum
from backtrack.records.diagnosis import ModuleGeometry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backtrack.diagnose.drift import Moments
    from backtrack.diagnose.modules import LinearModule
    from backtrack.diagnose.spectrum import Directions
    from backtrack.point import Point
    from backtrack.records import CurveName, Form, Role
    from backtrack.records.diagnosis import ActivationGeometry

    Activations = Mapping[Role, ActivationGeometry]


@dataclass(frozen=True)
class SharedFields:
    """Fields that all lines of a diagnosis share: see `ModuleGeometry`."""

    form: Form
    curve: CurveName
    setting: str


class BaseModule:
    """A module's weight and input moments at the base, to compare its weights at points with."""

    def __init__(
        self,
        module: LinearModule,
        moments: Mapping[Role, Moments],
        shared: SharedFields,
        mode: Literal["auto", "exact", "randomized"],
        seed: int,
    ) -> None:
        """Copy the weight of a model that is placed at the base.

        Args:
            module: The module.
            moments: Second moments of its inputs in the base, by the role of the prompts.
            shared: Fields of its lines.
            mode: How spectra are computed.
            seed: Seed of the random projections.
        """
        self.module = module
        self._weight = module.base_weight()
        self._norm = float(torch.linalg.vector_norm(self._weight.double()))
        self._moments = moments
        self._shared = shared
        self._mode = pick_mode(mode, module.shape)
        self._seed = seed

    @cached_property
    def _directions(self) -> Directions:
        return directions(self._weight, self._mode, self._seed)

    def geometry_at(
        self,
        point: Point,
        adapter: str | None,
        activations: Activations,
        *,
        has_spectrum: bool,
    ) -> ModuleGeometry:
        """The module's line at the point that the model is placed at.

        Args:
            point: That point.
            adapter: Name of the live adapter; None in a plain model.
            activations: Geometry of the module's outputs at the point, by role.
            has_spectrum: Whether to compute the weight-space profiles.
        """
        begin = time.perf_counter()
        weight = self._weight if point.is_base else self.module.weight(adapter)
        update = weight - self._weight
        norm = float(torch.linalg.vector_norm(update.double()))
        drifts = {r: drift(m, self._weight, update) for r, m in self._moments.items()}
        profiles = spectrum(self._directions, update, self._seed) if has_spectrum else None
        return ModuleGeometry(
            point=point.canonical,
            form=self._shared.form,
            curve=self._shared.curve,
            module=self.module.name,
            block=self.module.block,
            part=self.module.part,
            shape=self.module.shape,
            update_norm=norm,
            strength=norm / self._norm if self._norm else math.nan,
            spectrum=profiles,
            drift=drifts,
            activations=dict(activations),
            setting=self._shared.setting,
            seconds=time.perf_counter() - begin,
        )
