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
from typing import TYPE_CHECKING

from backtrack.errors import ExportError, UsageError
from backtrack.exporter.card import Card, served_by
from backtrack.path.adapters.tuners import tuner_of, why_dense
from backtrack.path.curves import rounding
from backtrack.path.models.loading import (
    load_adapter,
    load_base,
    load_model,
    probe,
    read_adapter_config,
)
from backtrack.path.placement import Placement, settle
from backtrack.run.checkpoint_writer import is_adapter
from backtrack.run.files import sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from backtrack.exporter.card import AsForm
    from backtrack.point import Point
    from backtrack.records import Measurement
    from backtrack.records.selection import Selection
    from backtrack.run.directory import Run


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


def export(  # noqa: PLR0913  # the front door: every argument but the first three is optional
    run: Run,
    point: Point,
    folder: str | Path,
    *,
    form: AsForm | None = None,
    device: str = "auto",
    command: str = "",
    on_stage: Callable[[str], None] = lambda _what: None,
) -> Export:
    """Write a point as an ordinary adapter or model.

    Args:
        run: The run.
        point: Where on its path.
        folder: A new folder.
        form: `adapter` where the points were measured attached, else `merged`, unless said.
        device: A torch device; `auto` is the first GPU, else the CPU.
        command: What the card gives as the way to make this again.
        on_stage: Called as each stage begins, with what is being done.

    Returns:
        What was written.

    Raises:
        UsageError: The folder is not empty, or the run has no adapter to hand back.
        ExportError: Loaded again, what was written gives other logits.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already and not empty. Name a new folder.")
    selection = run.selection()
    form = form or _natural_form(run, selection)
    on_stage("loading the model")
    placement = _placement(run, form, selection, device)
    on_stage(f"going to {point}")
    placement.place(point)
    measured = _measure_again(run, placement, selection)
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir(parents=True)
    on_stage("writing")
    try:
        placement.save(partial)
        placement.tokenizer.save_pretrained(str(partial))
        card = Card(run, point, form, selection, measured, command)
        (partial / "README.md").write_text(card.text() + served_by(partial), encoding="utf-8")
        on_stage("loading it back")
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
    if not recipe.engine.is_in_process:
        return ()
    from backtrack.evaluate.build import build_objectives
    from backtrack.evaluate.engine import RunFacts
    from backtrack.evaluate.measure import measure
    from backtrack.evaluate.transformers_engine import TransformersEngine

    kept = {
        m.objective.name: m.item_ids
        for m in run.measurements()
        if m.split == "report" and m.point == selection.chosen and m.form == selection.form
    }
    found: list[Measurement] = []
    facts = RunFacts(run.base, run.final, run.path, recipe.search.batch_size)
    engine = TransformersEngine(placement, recipe.engine, facts)
    for objective in build_objectives(recipe, placement.tokenizer):
        if objective.info.name in kept:
            items = kept[objective.info.name]
            found.append(measure(objective, engine, items, split="report", origin="export"))
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
