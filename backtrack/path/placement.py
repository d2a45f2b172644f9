"""Put a live model at a point, in place. With its two stands, all that writes into a model.

Two ways to stand at a point. ATTACHED: the adapter stays on the model and its handles are set; no
weight is copied and both ends are exact in any type. MERGED: effective weights are written into a
plain model.

Promised: alpha 0 is the base bit for bit and alpha 1 the checkpoint bit for bit (in the live
type), in any order of visits and after any number of them, since every visit starts from stored
ends and never from the model's current weights. Both ends are checked when a run is loaded,
against the bare base and against stock PEFT or transformers; a run that fails is refused.
Not promised: bits of an adapter merged into a plain model at alpha 1, which PEFT itself rounds
otherwise; there the check allows for the rounding of the weights' type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from peft import PeftType

from backtrack.errors import PlacementError, PointError, UsageError
from backtrack.path.attached import Attached
from backtrack.path.handles import NATIVE
from backtrack.path.loading import (
    load_tokenizer,
    pick_device,
    probe,
    read_adapter_config,
)
from backtrack.path.merged import MergedLine, MergedNative, WholeAdapter
from backtrack.path.profiles import require_known
from backtrack.point import Point
from backtrack.run.reader import verify_checkpoint
from backtrack.run.writer import is_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from backtrack.records import CurveName, Form
    from backtrack.run.directory import Run


class Placement:
    """A live model and the way to any point of a run's path.

    Attributes:
        model: The live model; a `PeftModel` where attached. Use it, do not write into it.
        tokenizer: The run's tokenizer.
        form: How the model stands: `attached` or `merged`.
        curve: Which curve it moves on: `native` or `line`.
        point: Where it stands now.
    """

    def __init__(
        self,
        run: Run,
        *,
        form: Literal["auto", "attached", "merged"] = "auto",
        curve: Literal["auto", "native", "line"] = "auto",
        device: str = "auto",
    ) -> None:
        """Load a run's base and last checkpoint and check both ends.

        Args:
            run: A run with at least one checkpoint.
            form: `auto` is attached for LoRA and OFT, merged for the rest.
            curve: `auto` is native where the method has one, else the dense line.
            device: A torch device; `auto` is the first GPU, else the CPU.

        Raises:
            UsageError: The method does not stand in this form on this curve.
            PlacementError: An end is not exact, or the run does not fit its base.
            CheckpointError: Weights are truncated, damaged or not finite.
            RunError: The base is not the run's.
        """
        folder = verify_checkpoint(run, run.final.step)
        self.form, self.curve = settle(folder, form, curve)
        self.tokenizer: Any = load_tokenizer(run.base, folder)
        self._stand = _stand(run, self.form, self.curve, pick_device(device))
        self._steps = frozenset(run.steps)
        self.model: Any = self._stand.model
        self.point = Point.base()
        self._check_ends(run)

    @torch.no_grad()
    def place(self, point: Point) -> None:
        """Put the model at `point`.

        Raises:
            PointError: The run has no such step, or no such profile is known.
            CheckpointError: The step's weights are damaged.
        """
        self._require(point)
        self._stand.place(point.canonical)
        self.point = point.canonical

    def distance(self, point: Point) -> float:
        """L2 norm of the way from the base to `point` along the curve, over the tensors that move.

        Raises:
            PointError: The run has no such step, or no such profile is known.
        """
        self._require(point)
        return 0.0 if point.is_base else self._stand.distance(point)

    def _require(self, point: Point) -> None:
        require_known(point.profile)
        if not point.is_base and point.step not in self._steps:
            known = ", ".join(str(step) for step in sorted(self._steps))
            raise PointError(f"there is no checkpoint of step {point.step}. There are: {known}.")

    def _check_ends(self, run: Run) -> None:
        self.place(run.final)
        _require_same(
            probe(self.model),
            self._stand.probe_final,
            self._stand.tolerance,
            f"{run.path}: alpha 1 is not the checkpoint",
        )
        self.place(Point.base())
        _require_same(
            probe(self.model), self._stand.probe_base, 0.0, f"{run.path}: alpha 0 is not the base"
        )


class Stand(Protocol):
    """One way of standing at points.

    Attributes:
        model: The live model.
        probe_base: Logits of the bare base.
        probe_final: Logits of the last checkpoint as stock libraries load it.
        tolerance: How far alpha 1 may be from `probe_final`, as a share of its largest logit.
    """

    model: Any
    probe_base: Tensor
    probe_final: Tensor
    tolerance: float

    def place(self, point: Point) -> None: ...

    def distance(self, point: Point) -> float: ...


def _stand(run: Run, form: Form, curve: CurveName, device: torch.device) -> Stand:
    if form == "attached":
        return Attached(run, device)
    folder = run.folder(run.final.step)
    if not is_adapter(folder):
        return MergedLine(run, device, adapter=None)
    if curve == "native":
        return MergedNative(run, device)
    return MergedLine(run, device, adapter=WholeAdapter(run, device))


def settle(folder: Path, form: str, curve: str) -> tuple[Form, CurveName]:
    """The form and the curve for a checkpoint, `auto` resolved.

    Raises:
        UsageError: They do not go together.
    """
    if not is_adapter(folder):
        if form == "attached" or curve == "native":
            raise UsageError(
                f"{folder} is a whole model: it has no adapter to attach and no native curve. "
                "Use `placement: {form: merged, curve: line}`, or `auto`."
            )
        return "merged", "line"
    has_native = PeftType(read_adapter_config(folder).peft_type) in NATIVE
    settled: Form = (
        "attached"
        if form == "attached" or (form == "auto" and has_native and curve != "line")
        else "merged"
    )
    chosen: CurveName = (
        "native" if curve == "native" or (curve == "auto" and has_native) else "line"
    )
    if settled == "attached" and chosen == "line":
        raise UsageError(
            f"{folder}: an attached adapter moves on its native curve. "
            "For the dense line use `placement: {form: merged, curve: line}`."
        )
    return settled, chosen


def _require_same(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    largest = float((found - expected).abs().max())
    if not largest <= tolerance * float(expected.abs().max()):
        raise PlacementError(
            f"{what}: probe logits differ by up to {largest:.3g}. The adapter changes more than "
            "its own weights (tied embeddings, an initialization that rewrites the base, a base "
            "that was resized?), so points between would be wrong. Nothing was measured."
        )
