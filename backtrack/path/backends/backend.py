"""The interface of a backend: what holds a model at a point and moves it to another.

`attached` keeps the adapter on the model and sets the adapter's tensors; `merged` writes effective
weights into a plain model. `Placement` builds one of them and asks nothing else what kind it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from backtrack.path.backends.attached import Attached
from backtrack.path.backends.merged import (
    MergedAdapterOnCurve,
    MergedAdapterOnLine,
    MergedFullModel,
)
from backtrack.run.checkpoint_writer import is_adapter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import Tensor

    from backtrack.path.backends.end_storage import EndStorage
    from backtrack.path.curves import Law
    from backtrack.path.profiles import Strength
    from backtrack.point import Point
    from backtrack.records import CurveName, Form
    from backtrack.run.directory import Run


class Backend(Protocol):
    """Holds a live model at a point of a run's path.

    Attributes:
        model: The live model; a `PeftModel` if attached, else a plain one.
        law: How the tensors that decide a module's strength follow alpha.
        modules: Paths of the modules that move, in the model's order.
        vocabulary: Number of tokens that the bare base and the checkpoint both have.
        is_resized: Whether training gave the vocabulary other rows than the base has.
        probe_base: Probe logits of the bare base, [2, 24, vocabulary].
        probe_final: Probe logits of the last checkpoint as stock PEFT or transformers loads it.
        tolerance: Largest allowed difference between alpha 1 and `probe_final`, relative to the
            largest logit.
        end_storage: Where the ends of the path are stored; None if no weight is copied.
    """

    model: Any
    law: Law
    vocabulary: int
    is_resized: bool
    probe_base: Tensor
    probe_final: Tensor
    tolerance: float
    end_storage: EndStorage | None

    @property
    def moving(self) -> Mapping[str, Tensor]:
        """The live tensors that points differ in, by their names in the model."""

    @property
    def modules(self) -> tuple[str, ...]: ...

    def prepare(self, point: Point, multipliers: Mapping[str, float]) -> Callable[[], None]:
        """Read and check what a point needs; return a function that sets the model's weights.

        The model does not change before that function is called, whether or not this raises. Call
        it before anything else is asked of the backend.

        Args:
            point: The point; alpha is multiplied module by module.
            multipliers: Each module's multiplier of alpha; 1 if missing.
        """

    def distance(self, point: Point, multipliers: Mapping[str, float]) -> float:
        """L2 norm of the path from the base to `point`, over the tensors that move.

        The model does not change, also if this raises.
        """

    def strengths(self, step: int) -> dict[str, Strength]:
        """Strength of each module at alpha 1. The model does not change, also if this raises."""


def build_backend(
    run: Run,
    form: Form,
    curve: CurveName,
    device: torch.device,
    storage: EndStorage | None,
) -> Backend:
    """Load a run's base and last checkpoint into the backend for this form and curve.

    Args:
        run: The run.
        form: How the model is held.
        curve: How its weights move with alpha; supported by the run's method in this form.
        device: Device of the live model.
        storage: Where the ends of a merged path are stored; None takes the fastest that fits.
    """
    if form == "attached":
        return Attached(run, device)
    if not is_adapter(run.folder(run.final.step)):
        return MergedFullModel(run, device, storage)
    if curve == "native":
        return MergedAdapterOnCurve(run, device, storage)
    return MergedAdapterOnLine(run, device, storage)
