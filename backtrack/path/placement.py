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

import logging
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from backtrack.errors import PlacementError, PointError, UsageError
from backtrack.path.adapters.tuners import (
    MAX_ATTACHED_COST,
    require_quantizable,
    tuner_of,
    why_dense,
)
from backtrack.path.backends.attached import Attached
from backtrack.path.backends.merged import MergedLine, MergedModels, MergedNative
from backtrack.path.backends.row_strengths import RowStrengths, can_scale_rows
from backtrack.path.curves import rounding
from backtrack.path.models.embeddings import num_tokens
from backtrack.path.models.loading import (
    is_quantized,
    load_tokenizer,
    pick_device,
    probe,
    read_adapter_config,
)
from backtrack.path.models.saving import save_model
from backtrack.path.profiles import block_strengths, multipliers, parse
from backtrack.point import Point
from backtrack.run.checkpoint_writer import is_adapter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from backtrack.path.backends.stored_ends import Keep
    from backtrack.path.curves import Law
    from backtrack.path.profiles import Strength
    from backtrack.records import CurveName, Form
    from backtrack.run.directory import Run


logger = logging.getLogger(__name__)

_KEPT = {"pinned": "in host memory", "mapped": "in files (see TMPDIR)"}


class Placement:
    """A live model and the way to any point of a run's path.

    Attributes:
        model: The live model; a `PeftModel` where attached. Use it, do not write into it.
        tokenizer: The run's tokenizer.
        form: How the model stands: `attached` or `merged`.
        curve: Which curve it moves on: `native` or `line`.
        keep: Where the ends of a merged path are kept: `device`, `pinned` or `mapped`; none where
            attached.
        point: Where it stands now.
        row_strengths: Several strengths in one batch, for a plain LoRA; None for all else.
    """

    def __init__(  # the front door: every argument but the run is optional
        self,
        run: Run,
        *,
        form: Literal["auto", "attached", "merged"] = "auto",
        curve: Literal["auto", "native", "line"] = "auto",
        device: str = "auto",
        keep: Literal["auto", "device", "pinned", "mapped"] = "auto",
    ) -> None:
        """Load a run's base and last checkpoint and check both ends.

        Args:
            run: A run with at least one checkpoint.
            form: `auto` is attached where the adapter has a native curve and its forward pass
                costs at most twice the base's, else merged. What is measured should be what is
                exported: name the form that will be served.
            curve: `auto` is native where the method has one, else the dense line.
            device: A torch device; `auto` is the first GPU, else the CPU.
            keep: Where the ends of a merged path are kept; `auto` is the fastest that fits.

        Raises:
            UsageError: The method does not stand in this form on this curve.
            PlacementError: An end is not exact, or the run does not fit its base.
            CheckpointError: Weights are truncated, damaged or not finite.
            RunError: The base is not the run's.
        """
        folder = run.folder(run.final.step)
        if is_quantized(run.base):
            form = _require_quantizable(run, folder, form)
        self.form, self.curve = settle(folder, form, curve)
        self.tokenizer: Any = load_tokenizer(run.base, folder)
        kept: Keep | None = None if keep == "auto" else keep
        self._stand = _stand(run, self.form, self.curve, pick_device(device), kept)
        self._steps = frozenset(run.steps)
        self._multipliers: dict[tuple[int, str], Mapping[str, float]] = {}
        self._distances: dict[Point, float] = {}
        self.model: Any = self._stand.model
        self.keep = self._stand.keep
        if self.keep in {"pinned", "mapped"}:
            logger.warning(
                "%s: the ends of the path do not fit beside the model; they are kept %s, and a "
                "placement takes as long as reading them.", run.path, _KEPT[self.keep],
            )  # fmt: skip
        self.point = Point.base()
        self._check_ends(run)
        self.row_strengths: RowStrengths | None = None
        if isinstance(self._stand, Attached) and can_scale_rows(self._stand):
            self.row_strengths = RowStrengths(self._stand)

    @torch.no_grad()
    def place(self, point: Point) -> None:
        """Put the model at `point`.

        Raises:
            PointError: The run has no such step, no such profile is known, or the method cannot
                stand there.
            CheckpointError: The step's weights are damaged.
        """
        here = point.canonical
        self._stand.place(here, self._shares(here))
        self.point = here

    def save(self, folder: Path, *, is_untied: bool = False) -> None:
        """Write the model as it stands, as stock PEFT, transformers and vLLM load it.

        Args:
            folder: Where; an attached adapter is written as one, a merged model whole.
            is_untied: Write a tied head as a tensor of its own.
        """
        save_model(self.model, folder, is_untied=is_untied)

    @torch.no_grad()
    def distance(self, point: Point) -> float:
        """L2 norm of the way from the base to `point` along the curve, over the tensors that move.

        Raises:
            PointError: The run has no such step, or no such profile is known.
        """
        if point not in self._distances:
            shares = self._shares(point)
            self._distances[point] = 0.0 if point.is_base else self._stand.distance(point, shares)
        return self._distances[point]

    @torch.no_grad()
    def strengths(self, step: int) -> dict[int, float]:
        """How far each block of layers moves at a checkpoint, by its index; see `profiles`.

        Raises:
            PointError: The run has no such step.
        """
        self._require(Point(step=step))
        return block_strengths(self._measured_strengths(step))

    def _measured_strengths(self, step: int) -> dict[str, Strength]:
        found = self._stand.strengths(step)
        self._stand.place(self.point, self._shares(self.point))
        return found

    def _shares(self, point: Point) -> Mapping[str, float]:
        """Each module's multiplier of alpha; empty where all are 1."""
        self._require(point)
        profile = parse(point.profile)
        if point.is_base or profile.kind == "uniform":
            return {}
        key = (point.step, str(profile))
        if key not in self._multipliers:
            measured = profile.kind in {"safe", "min"}
            strengths = self._measured_strengths(point.step) if measured else {}
            self._multipliers[key] = multipliers(
                profile, self._stand.modules, strengths, self._stand.law
            )
        return self._multipliers[key]

    def _require(self, point: Point) -> None:
        parse(point.profile)
        if not point.is_base and point.step not in self._steps:
            known = ", ".join(str(step) for step in sorted(self._steps))
            raise PointError(f"there is no checkpoint of step {point.step}. There are: {known}.")

    def _check_ends(self, run: Run) -> None:
        stand = self._stand
        self.place(run.final)
        _require_same(
            probe(self.model, stand.vocabulary),
            stand.probe_final,
            stand.tolerance,
            f"{run.path}: alpha 1 is not the checkpoint",
        )
        self.place(Point.base())
        is_resized = num_tokens(self.model) != stand.vocabulary
        _require_same(
            probe(self.model, stand.vocabulary),
            stand.probe_base,
            rounding(self.model.dtype) if is_resized else 0.0,
            f"{run.path}: alpha 0 is not the base",
        )


class Stand(Protocol):
    """One way of standing at points.

    Attributes:
        model: The live model.
        law: How the tensors that decide strength follow alpha.
        modules: Paths of the modules that move, in the model's order.
        vocabulary: Tokens of the bare base.
        probe_base: Logits of the bare base.
        probe_final: Logits of the last checkpoint as stock libraries load it.
        tolerance: How far alpha 1 may be from `probe_final`, as a share of its largest logit.
        keep: Where its ends are kept; none where no weight is copied.
    """

    model: Any
    law: Law
    vocabulary: int
    probe_base: Tensor
    probe_final: Tensor
    tolerance: float
    keep: Keep | None

    @property
    def modules(self) -> tuple[str, ...]: ...

    def place(self, point: Point, multipliers: Mapping[str, float]) -> None: ...

    def distance(self, point: Point, multipliers: Mapping[str, float]) -> float: ...

    def strengths(self, step: int) -> dict[str, Strength]: ...


def _stand(
    run: Run, form: Form, curve: CurveName, device: torch.device, keep: Keep | None
) -> Stand:
    if form == "attached":
        return Attached(run, device)
    if not is_adapter(run.folder(run.final.step)):
        return MergedModels(run, device, keep)
    return MergedNative(run, device, keep) if curve == "native" else MergedLine(run, device, keep)


def _require_quantizable(run: Run, folder: Path, form: str) -> Literal["attached"]:
    """The form on a quantized base, where there is one."""
    if not is_adapter(folder):
        raise PlacementError(
            f"{run.path}: whole models have no path from a quantized base. Give it in full "
            "precision: without `quantization`, or another with --base."
        )
    require_quantizable(read_adapter_config(folder), form, str(run.path))
    return "attached"


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
    config = read_adapter_config(folder)
    tuner = tuner_of(config)
    if curve == "native" and not tuner.has_native:
        raise UsageError(
            f"{folder}: {why_dense(config)}, so it has no native curve. Use "
            "`placement: {form: merged, curve: line}`, or `auto`."
        )
    chosen: CurveName = "native" if tuner.has_native and curve != "line" else "line"
    is_cheap = tuner.cost <= MAX_ATTACHED_COST or not tuner.can_merge
    settled: Form = (
        "attached"
        if form == "attached" or (form == "auto" and chosen == "native" and is_cheap)
        else "merged"
    )
    if settled == "attached" and chosen == "line":
        raise UsageError(
            f"{folder}: an attached adapter moves on its native curve. "
            "For the dense line use `placement: {form: merged, curve: line}`."
        )
    if settled == "merged" and not tuner.can_merge:
        raise UsageError(
            f"{folder}: PEFT cannot write a {config.peft_type} adapter of this kind into the "
            "base's weights. Use `placement: {form: attached}`, or `auto`."
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
