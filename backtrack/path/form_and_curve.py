"""Resolve `auto` for form and curve: which of them a run's method supports, and which is taken.

`attached` or `merged` is how a model is held at a point, `native` or `line` is the curve that it
moves on. `Tuner.forms_and_curves` lists what an adapter's method supports, default first; a whole
model supports the merged line only. On a quantized base everything is attached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backtrack.errors import PlacementError, UsageError
from backtrack.path.adapters.tuners import require_quantizable, tuner_of
from backtrack.path.models.loading import is_quantized, read_adapter_config
from backtrack.records.places import ANOTHER_BASE
from backtrack.run.checkpoint_writer import is_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.path.adapters.tuners import Tuner
    from backtrack.records import CurveName, Form
    from backtrack.run.directory import Run


def resolve_form_and_curve(run: Run, form: str, curve: str) -> tuple[Form, CurveName]:
    """The form and curve of a run's points, from a request in which either may be `auto`.

    Raises:
        UsageError: The run's method does not support this form on this curve.
        PlacementError: The method has no path from the base, or none from a quantized one.
    """
    folder = run.folder(run.final.step)
    if not is_adapter(folder):
        return _of_whole_model(run, folder, form, curve)
    config = read_adapter_config(folder)
    if is_quantized(run.base):
        require_quantizable(config, form, str(run.path))
        form = "attached"
    tuner = tuner_of(config)
    for supported_form, supported_curve in tuner.forms_and_curves:
        if form in {"auto", supported_form} and curve in {"auto", supported_curve}:
            return supported_form, supported_curve
    raise UsageError(f"{folder}: {_why_unsupported(tuner, config.peft_type, form, curve)}")


def _of_whole_model(run: Run, folder: Path, form: str, curve: str) -> tuple[Form, CurveName]:
    if is_quantized(run.base):
        raise PlacementError(
            f"{run.path}: whole models have no path from a quantized base. Give the base in full "
            f"precision: without `quantization`, or another. {ANOTHER_BASE}"
        )
    if form == "attached" or curve == "native":
        raise UsageError(
            f"{folder} is a whole model: it has no adapter to attach and no native curve. "
            "Use `placement: {form: merged, curve: line}`, or `auto`."
        )
    return "merged", "line"


def _why_unsupported(tuner: Tuner, method: object, form: str, curve: str) -> str:
    """Why the tuner does not support the requested form and curve, and what to use instead."""
    if tuner.why_line_only and curve != "line":
        return (
            f"{tuner.why_line_only}, so it has no native curve. Use "
            "`placement: {form: merged, curve: line}`, or `auto`."
        )
    if form == "attached":
        return (
            "an attached adapter moves on its native curve. "
            "For the line use `placement: {form: merged, curve: line}`."
        )
    return (
        f"PEFT cannot write a {method} adapter of this kind into the base's weights. "
        "Use `placement: {form: attached}`, or `auto`."
    )
