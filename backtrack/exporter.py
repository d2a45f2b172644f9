"""Hand a point back as what other tools load: a PEFT adapter, or a merged model.

Promised: what is written gives, loaded by stock PEFT or transformers, the logits of the model that
was measured; it is loaded and compared before the folder takes its final name. What is measured is
what is exported: a point measured in the other form is measured again, and the card says so.
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from backtrack.errors import ExportError, UsageError
from backtrack.path.curves import rounding
from backtrack.path.loading import (
    load_adapter,
    load_base,
    load_model,
    probe,
    read_adapter_config,
)
from backtrack.path.placement import Placement, settle
from backtrack.path.saving import why_not_in_vllm
from backtrack.path.tuners import tuner_of, why_dense
from backtrack.recipe import VllmEngine
from backtrack.run.directory import sync_folder
from backtrack.run.writer import is_adapter

if TYPE_CHECKING:
    from backtrack.point import Point
    from backtrack.records import Form, Measurement, Selection
    from backtrack.run.directory import Run

AsForm = Literal["adapter", "merged"]
_STANDING: dict[AsForm, Form] = {"adapter": "attached", "merged": "merged"}


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: Where.
        form: `adapter` or `merged`.
        point: Which point.
        measured: Scores measured again because the form differs from the selection's.
    """

    folder: Path
    form: AsForm
    point: Point
    measured: tuple[Measurement, ...] = ()


def export(
    run: Run,
    point: Point,
    folder: str | Path,
    *,
    form: AsForm | None = None,
    device: str = "auto",
    command: str = "",
) -> Export:
    """Write a point as an ordinary adapter or model.

    Args:
        run: The run.
        point: Where on its path.
        folder: A new folder.
        form: `adapter` where the points were measured attached, else `merged`, unless said.
        device: A torch device; `auto` is the first GPU, else the CPU.
        command: What the card gives as the way to make this again.

    Raises:
        UsageError: The folder is not empty, or the run has no adapter to hand back.
        ExportError: Loaded again, what was written gives other logits.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already and not empty. Name a new folder.")
    selection = run.selection()
    form = form or _natural_form(run, selection)
    placement = _placement(run, form, selection, device)
    placement.place(point)
    measured = _measure_again(run, placement, selection)
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir(parents=True)
    try:
        placement.save(partial)
        placement.tokenizer.save_pretrained(str(partial))
        card = model_card(run, point, form, selection, measured, command)
        (partial / "README.md").write_text(card + _served_by(partial), encoding="utf-8")
        _verify(run, partial, form, placement)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Export(folder, form, point.canonical, measured)


def _natural_form(run: Run, selection: Selection | None) -> AsForm:
    if selection is not None:
        return "adapter" if selection.form == "attached" else "merged"
    form, _ = settle(run.folder(run.final.step), "auto", "auto")
    return "adapter" if form == "attached" else "merged"


def _placement(run: Run, form: AsForm, selection: Selection | None, device: str) -> Placement:
    if form == "adapter" and not is_adapter(run.folder(run.final.step)):
        raise UsageError(
            f"{run.path} is a run of whole models: there is no adapter. Use --as merged."
        )
    if form == "adapter":
        _require_adapter_form(run)
        return Placement(run, form="attached", device=device)
    return Placement(
        run, form="merged", curve=selection.curve if selection else "auto", device=device
    )


def _require_adapter_form(run: Run) -> None:
    config = read_adapter_config(run.folder(run.final.step))
    if not tuner_of(config).has_native:
        raise UsageError(
            f"{run.path}: {why_dense(config)}, so no {config.peft_type} adapter stands between "
            "the base and the checkpoint. Use --as merged."
        )


def _measure_again(
    run: Run, placement: Placement, selection: Selection | None
) -> tuple[Measurement, ...]:
    """Report items of the chosen point, where it was measured in the other form.

    Not of what an engine measured: these scores would be transformers', and no rows to compare.
    """
    recipe = run.measured_recipe()
    if selection is None or placement.form == selection.form or recipe is None:
        return ()
    if isinstance(recipe.engine, VllmEngine):
        return ()
    from backtrack.evaluate.build import build_objectives
    from backtrack.evaluate.measuring import measure

    kept = {
        m.objective.name: m.item_ids
        for m in run.measurements()
        if m.split == "report" and m.point == selection.chosen and m.form == selection.form
    }
    found: list[Measurement] = []
    for objective in build_objectives(recipe, placement.tokenizer):
        if objective.info.name in kept:
            items = kept[objective.info.name]
            found.append(measure(objective, placement, items, split="report", origin="export"))
            run.record(found[-1])
    return tuple(found)


def _verify(run: Run, folder: Path, form: AsForm, placement: Placement) -> None:
    """Load what was written as anybody would, and compare."""
    device = placement.model.device
    expected = probe(placement.model)
    if form == "adapter":
        found = probe(load_adapter(load_base(run.base, device), folder))
    else:
        code = run.base.trust_remote_code
        found = probe(load_model(folder, "auto", device, trust_remote_code=code))
    largest = float((found - expected).abs().max())
    if not largest <= _allowance(placement, form) * float(expected.abs().max()):
        raise ExportError(
            f"{folder}: loaded again, its logits differ by up to {largest:.3g} from the measured "
            "model's. Nothing was exported. Try the other form with --as."
        )


def _allowance(placement: Placement, form: AsForm) -> float:
    """How far the export's logits may be from the placed model's, as a share of the largest.

    None, but where a LoRA's own scalings were put into its factors, or a layer that is switched
    off at alpha 0 (Householder vectors) is written as the vectors that cancel.
    """
    config = placement.model.peft_config["default"] if form == "adapter" else None
    if config is None:
        return 0.0
    has_patterns = getattr(config, "rank_pattern", None) or getattr(config, "alpha_pattern", None)
    is_turned = "turn" in tuner_of(config).rules.values()
    return rounding(placement.model.dtype) if has_patterns or is_turned else 0.0


def model_card(
    run: Run,
    point: Point,
    form: AsForm,
    selection: Selection | None,
    measured: tuple[Measurement, ...],
    command: str,
) -> str:
    """The README of an export: base, point, what was measured, and how to make it again."""
    base = run.base.model
    lines = [
        "---",
        f"base_model: {_yaml_text(base)}",
        f"library_name: {'peft' if form == 'adapter' else 'transformers'}",
        "pipeline_tag: text-generation",
        f"tags: [backtrack, {'lora' if run.manifest.method.kind == 'lora' else 'fine-tuned'}]",
        "---",
        "",
        f"# {run.manifest.name}, {point}",
        "",
        f"The point at {point.alpha:g} of the way from `{base}` to the checkpoint of step "
        f"{point.step} of the run `{run.manifest.name}` ({run.manifest.method.kind}), profile "
        f"{point.profile}, found by backtrack.",
        "",
    ]
    if selection is not None:
        lines += _measured_table(selection)
        if point.canonical != selection.chosen:
            lines += [f"This is not the chosen point of that selection ({selection.chosen}).", ""]
    if selection is not None and not measured and _STANDING[form] != selection.form:
        lines += [f"Measured {selection.form} only: in the form of this export it was not.", ""]
    if measured and selection is not None:
        lines += [
            "Measured again in the form of this export, since the selection was measured "
            f"{selection.form}:",
            "",
            *(f"- {m.objective.name}: {sum(m.scores) / len(m.scores):.4g}" for m in measured),
            "",
        ]
    lines += ["## Loading", "", "```python", *_loading(base, form), "```", ""]
    if command:
        lines += ["## Made by", "", "```", command, "```", ""]
    return "\n".join(lines)


def _measured_table(selection: Selection) -> list[str]:
    """Base, chosen point and final on the items kept for the report."""
    target, general = (selection.axes[role] for role in ("target", "general"))
    rows = [
        f"| {name} | {row.point} | {_shown(row.target)} | {_shown(row.general)} |"
        for name, row in selection.report.items()
    ]
    return [
        f"Measured on items the search never saw (weight {selection.weight:g} on the target):",
        "",
        f"| | point | target ({target.unit}) | general ({general.unit}) |",
        "|---|---|---|---|",
        *rows,
        "",
        selection.verdict,
        "",
    ]


def _shown(interval: Any) -> str:
    return f"{interval.estimate:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def _yaml_text(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _served_by(folder: Path) -> str:
    """What vLLM makes of an adapter: a line for the card, where there is something to say."""
    if not is_adapter(folder):
        return ""
    unread = why_not_in_vllm(folder)
    if not unread:
        return "\nOne rank and scaling everywhere, so vLLM reads it too (`LoRARequest`).\n"
    return f"\nvLLM does not read {unread}: to serve this point there, export it merged.\n"


def _loading(base: str, form: AsForm) -> list[str]:
    if form == "merged":
        return [
            "from transformers import AutoModelForCausalLM",
            'model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")',
        ]
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        f"base = AutoModelForCausalLM.from_pretrained({base!r})",
        'model = PeftModel.from_pretrained(base, "THIS FOLDER")',
    ]
