"""A run's placement inside the engine that a recipe names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack.path.models.saving import form_in_vllm
from backtrack.path.placement import Placement

if TYPE_CHECKING:
    from backtrack.evaluate.vllm.placement import VllmPlacement
    from backtrack.recipe import PlacementSection, VllmEngine
    from backtrack.run.directory import Run

LOG = "engine.log"


def serve(run: Run, section: PlacementSection, engine: VllmEngine) -> VllmPlacement:
    """A placement whose questions a vLLM engine answers.

    The placement itself, which makes each point's weights, stays on the CPU unless the recipe
    names a device: the GPU is the engine's.

    Raises:
        UsageError: vLLM does not read the adapter, and attached is asked for.
        EngineError: The engine does not start, or its answers are not the placed model's.
    """
    from backtrack.evaluate.vllm.placement import VllmPlacement

    form = form_in_vllm(run.folder(run.final.step), section.form)
    device = "cpu" if section.device == "auto" else section.device
    placement = Placement(run, form=form, curve=section.curve, device=device, keep=section.keep)
    return VllmPlacement(placement, engine, run.base, run.final, run.path / LOG)
