"""Set a live model's weights to a point. Only this module and `path/backends/` write into a model.

The backend `attached` keeps the adapter on the model and sets the adapter's tensors: no weight is
copied and both ends are exact in any type. `merged` writes effective weights into a plain model.

Promised: alpha 0 is the base bit for bit and alpha 1 the checkpoint bit for bit (in the live
type), in any order of visits and after any number of them, since every visit starts from stored
ends and never from the model's current weights. Both ends are checked when a run is loaded,
against the bare base and against stock PEFT or transformers; a run that fails is refused.
Not promised: the bits of an adapter merged into a plain model at alpha 1, which PEFT itself rounds
differently; there the check allows for rounding in the type of the weights, and so it does on a
device whose kernels give one model other logits each time.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import GenerationConfig

from backtrack.errors import PlacementError, PointError
from backtrack.path.backends.attached import Attached
from backtrack.path.backends.backend import build_backend
from backtrack.path.backends.row_strengths import RowStrengths, can_scale_rows
from backtrack.path.curves import rounding
from backtrack.path.form_and_curve import resolve_form_and_curve
from backtrack.path.models.architecture import unwrapped
from backtrack.path.models.embeddings import vocabulary_size
from backtrack.path.models.exact_arithmetic import full_precision
from backtrack.path.models.loading import differs_by, pick_device
from backtrack.path.models.saving import save_files, save_model
from backtrack.path.profiles import BY_STRENGTH, block_strengths, multipliers, parse
from backtrack.point import Point
from backtrack.run.answers import generation_settings, load_tokenizer
from backtrack.run.model_files import model_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from backtrack.run.directory import Run


logger = logging.getLogger(__name__)

_SLOW_STORAGE = {"pinned": "in host memory", "mapped": "in files (see TMPDIR)"}


class Placement:
    """A live model that can be set to any point of a run's path.

    If a method raises, the model is at the point it was at, and so is `point`: a checkpoint is
    read and checked before any weight is changed. If writing the weights itself is interrupted,
    the model is at no point: `point` and `save` raise until `place` succeeds.

    Attributes:
        model: The live model; a `PeftModel` if attached. Use it, do not write into it.
        tokenizer: The run's tokenizer.
        form: How the model is held: `attached` or `merged`.
        curve: The curve it moves on: `native` or `line`.
        keep: Where the ends of a merged path are stored: `device`, `pinned` or `mapped`; None if
            attached.
        row_strengths: Several strengths in one batch, for a plain LoRA; None for all else.
    """

    def __init__(  # every argument but the run is optional
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
            form: `auto` is attached if the adapter has a native curve and its forward pass costs
                at most twice the base's, else merged. What is measured should be what is exported:
                name the form that will be served.
            curve: `auto` is native if the method has a native curve, else the line.
            device: A torch device; `auto` is the first GPU, all GPUs for a model that does not fit
                on one, else the CPU.
            keep: Where the ends of a merged path are stored; `auto` is the fastest that fits.

        Raises:
            UsageError: The method does not support this form on this curve.
            PlacementError: An end is not exact, or the run does not fit its base.
            CheckpointError: Weights are truncated, damaged or not finite.
            RunError: The base is not the run's.
        """
        self.form, self.curve = resolve_form_and_curve(run, form, curve)
        self.tokenizer: Any = load_tokenizer(run)
        storage = None if keep == "auto" else keep
        self._backend = build_backend(run, self.form, self.curve, pick_device(device), storage)
        self._steps = frozenset(run.steps)
        self._multipliers: dict[tuple[int, str], Mapping[str, float]] = {}
        self._distances: dict[Point, float] = {}
        self.model: Any = self._backend.model
        self._base = run.base.model
        self.keep = self._backend.end_storage
        if self.keep in {"pinned", "mapped"}:
            logger.warning(
                "%s: the ends of the path are stored %s, not on the device; moving to a point "
                "takes as long as reading them.", run.path, _SLOW_STORAGE[self.keep],
            )  # fmt: skip
        self._files = model_files(run)
        self._generation = generation_settings(run, self.tokenizer)
        generation = GenerationConfig.from_dict(self._generation)
        self.model.generation_config = unwrapped(self.model).generation_config = generation
        self._point: Point | None = None
        self._check_ends(run)
        self.row_strengths: RowStrengths | None = None
        if isinstance(self._backend, Attached) and can_scale_rows(self._backend):
            self.row_strengths = RowStrengths(self._backend)

    @property
    def point(self) -> Point:
        """The point that the model is at.

        Raises:
            PlacementError: The last `place` was interrupted while it wrote weights.
        """
        if self._point is None:
            raise PlacementError(
                "the model is at no point of the path: the last move was interrupted while "
                "weights were written. Place it again."
            )
        return self._point

    @property
    def resized_rows(self) -> int | None:
        """Rows of the embedding at every point, if training changed their number; else None."""
        return vocabulary_size(self.model) if self._backend.is_resized else None

    @property
    def moving(self) -> Mapping[str, Tensor]:
        """The live tensors that points differ in, by their names in the model; read them only."""
        return self._backend.moving

    @torch.no_grad()
    def place(self, point: Point) -> None:
        """Set the model's weights to `point`.

        Raises:
            PointError: The run has no such step, there is no such profile, or the method does not
                reach this strength.
            CheckpointError: The step's weights are damaged.
        """
        target = point.canonical
        with full_precision():
            write = self._backend.prepare(target, self._multipliers_at(target))
            self._point = None
            write()
        self._point = target

    def save(self, folder: Path, *, is_untied: bool = False) -> None:
        """Write the model's weights at its current point, as stock libraries and vLLM load them.

        Args:
            folder: Folder to write into. Attached, the adapter is written, else the whole model.
            is_untied: Write a tied head as a separate tensor.

        Raises:
            PlacementError: The model is at no point.
        """
        logger.info("writing %s to %s", self.point, folder)
        save_model(self.model, folder, self._base, is_untied=is_untied)

    def save_files(self, folder: Path) -> None:
        """Write the run's tokenizer, chat template and generation config, the same at any point.

        Args:
            folder: Folder to write into; created if missing.
        """
        save_files(self._files, self._generation, folder)

    @torch.no_grad()
    def distance(self, point: Point) -> float:
        """L2 norm of the path from the base to `point` along the curve, over tensors that move.

        Raises:
            PointError: The run has no such step, or there is no such profile.
        """
        if point not in self._distances:
            by_module = self._multipliers_at(point)
            self._distances[point] = (
                0.0 if point.is_base else self._backend.distance(point, by_module)
            )
        return self._distances[point]

    @torch.no_grad()
    def strengths(self, step: int) -> dict[int, float]:
        """Strength of each block of layers at a checkpoint, by index; see `profiles`.

        Raises:
            PointError: The run has no such step.
        """
        self._require_known(Point(step=step))
        return block_strengths(self._backend.strengths(step))

    def _multipliers_at(self, point: Point) -> Mapping[str, float]:
        """Each module's multiplier of alpha; empty if all are 1."""
        self._require_known(point)
        profile = parse(point.profile)
        if point.is_base or profile.kind == "uniform":
            return {}
        key = (point.step, str(profile))
        if key not in self._multipliers:
            measured = profile.kind in BY_STRENGTH
            strengths = self._backend.strengths(point.step) if measured else {}
            self._multipliers[key] = multipliers(
                profile, self._backend.modules, strengths, self._backend.law
            )
        return self._multipliers[key]

    def _require_known(self, point: Point) -> None:
        parse(point.profile)
        if not point.is_base and point.step not in self._steps:
            known = ", ".join(str(step) for step in sorted(self._steps))
            raise PointError(
                f"there is no checkpoint of step {point.step}. The run has steps {known}."
            )

    def _check_ends(self, run: Run) -> None:
        backend = self._backend
        self.place(run.final)
        self._require_logits(
            backend.probe_final,
            backend.tolerance,
            f"{run.path}: alpha 1 is not the checkpoint",
        )
        self.place(Point.base())
        self._require_logits(
            backend.probe_base,
            rounding(self.model.dtype) if backend.is_resized else 0.0,
            f"{run.path}: alpha 0 is not the base",
        )

    def _require_logits(self, expected: Tensor, tolerance: float, what: str) -> None:
        difference = differs_by(self.model, expected, tolerance)
        if difference:
            raise PlacementError(
                f"{what}: probe logits differ by up to {difference:.3g}. The checkpoint changes "
                "more than its trained weights (tied embeddings, an initialization that rewrites "
                "the base, a resized base?), so points between would be wrong. Nothing was "
                "measured."
            )


def place_as_asked(run: Run) -> Placement:
    """A run's live model at the base, held as the recipe that it is chosen by asks for."""
    section = run.choosing.recipe.placement if run.choosing else None
    return Placement(run, **section.model_dump()) if section else Placement(run)
