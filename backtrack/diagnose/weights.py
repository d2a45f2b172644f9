"""One module at point after point: its update's norms, spectrum and drift as a record."""

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
class Stamp:
    """What all lines of a diagnosis share: see `ModuleGeometry`."""

    form: Form
    curve: CurveName
    setting: str


class Look:
    """A module of the base, ready to be compared with where it stands at points."""

    def __init__(
        self,
        module: LinearModule,
        moments: Mapping[Role, Moments],
        stamp: Stamp,
        mode: Literal["auto", "exact", "randomized"],
        seed: int,
    ) -> None:
        """Take the weight of a model that stands at the base."""
        self.module = module
        self._base = module.base_weight()
        self._norm = float(torch.linalg.vector_norm(self._base.double()))
        self._moments = moments
        self._stamp = stamp
        self._mode = pick_mode(mode, module.shape)
        self._seed = seed

    @cached_property
    def _directions(self) -> Directions:
        return directions(self._base, self._mode, self._seed)

    def at(
        self,
        point: Point,
        adapter: str | None,
        activations: Activations,
        *,
        has_spectrum: bool,
    ) -> ModuleGeometry:
        """The module where the model stands now.

        Args:
            point: Where that is.
            adapter: The live adapter's name; none in a plain model.
            activations: What is known of its outputs there.
            has_spectrum: Whether to take the weight-space profiles.
        """
        begin = time.perf_counter()
        weight = self._base if point.is_base else self.module.weight(adapter)
        update = weight - self._base
        norm = float(torch.linalg.vector_norm(update.double()))
        found = {r: drift(m, self._base, update) for r, m in self._moments.items()}
        profiles = spectrum(self._directions, update, self._seed) if has_spectrum else None
        return ModuleGeometry(
            point=point.canonical,
            form=self._stamp.form,
            curve=self._stamp.curve,
            module=self.module.name,
            block=self.module.block,
            part=self.module.part,
            shape=self.module.shape,
            update_norm=norm,
            strength=norm / self._norm if self._norm else math.nan,
            spectrum=profiles,
            drift=found,
            activations=dict(activations),
            setting=self._stamp.setting,
            seconds=time.perf_counter() - begin,
        )
