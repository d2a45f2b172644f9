"""Write a point as a PEFT adapter or a merged model that other tools load.

Promised: loaded by stock PEFT or transformers, the export gives the logits of the model that was
measured; that is checked before the folder takes its final name. What is measured is what is
exported: a point measured in the other form is measured again, and the card says so. A folder that
has the same export already, whole, is left as it is. Memory: what the placed model takes, and one
file of the written one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backtrack.errors import UsageError
from backtrack.exporter.card import Card, vllm_note
from backtrack.exporter.earlier import has_export, made_of, write_exported
from backtrack.exporter.new_folder import require_new, whole_folder
from backtrack.exporter.verify import verify_adapter, verify_model
from backtrack.path.adapters.tuners import tuner_of
from backtrack.path.form_and_curve import resolve_form_and_curve
from backtrack.path.models.architecture import loader_name
from backtrack.path.models.loading import read_adapter_config
from backtrack.path.placement import Placement
from backtrack.records.setting import setting_digest
from backtrack.run.checkpoint_writer import is_adapter

if TYPE_CHECKING:
    from collections.abc import Callable

    from backtrack.point import Point
    from backtrack.records import Measurement
    from backtrack.records.export import AsForm
    from backtrack.records.selection import Selection
    from backtrack.run.directory import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """A point that was written.

    Attributes:
        folder: The folder written.
        form: `adapter` or `merged`.
        point: The point.
        measured: Measurements repeated because the form differs from the selection's.
    """

    folder: Path
    form: AsForm
    point: Point
    measured: tuple[Measurement, ...] = ()


def export(  # noqa: PLR0913  # every argument but the first three is optional
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
        point: The point to write.
        folder: A new or empty folder, or one that has this export already.
        form: None is `adapter` if the points were measured attached, else `merged`.
        device: A torch device; `auto` is the first GPU, else the CPU.
        command: The command that repeats this export, for the card.
        on_stage: Called with a description as each stage begins.

    Returns:
        The point, form and folder written.

    Raises:
        UsageError: The folder has something else, or the run has no adapter to export.
        ExportError: Loaded by stock libraries, the export would be another model; or the disk is
            full.
    """
    folder = Path(folder)
    selection = _selection_of(run, point)
    form = form or _default_form(run, selection)
    made = made_of(run, point, form, selection)
    if has_export(folder, made):
        logger.warning("%s has this export already: it was left as it is", folder)
        return Export(folder, form, point.canonical)
    require_new(folder)
    on_stage("loading the model")
    placement = _placement(run, form, selection, device)
    on_stage(f"placing the model at {point}")
    placement.place(point)
    measured = _measure_again(run, placement, selection)
    on_stage("writing")
    with whole_folder(folder) as partial:
        placement.save(partial)
        placement.save_files(partial)
        loader = loader_name(placement.model)
        rows = placement.resized_rows
        card = Card(run, point, form, selection, measured, command, loader, rows)
        (partial / "README.md").write_text(card.text() + vllm_note(partial), encoding="utf-8")
        on_stage("checking it")
        if form == "adapter":
            verify_adapter(partial, placement)
        else:
            verify_model(partial, placement, trust_remote_code=run.base.trust_remote_code)
        write_exported(partial, made)
    return Export(folder, form, point.canonical, measured)


def has_adapter(run: Run, point: Point, folder: Path) -> bool:
    """Whether a folder has the export of a point as an adapter already."""
    return has_export(folder, made_of(run, point, "adapter", _selection_of(run, point)))


def _selection_of(run: Run, point: Point) -> Selection | None:
    """The selection, unless checkpoints that its scores of the point need were replaced since."""
    selection = run.selection()
    replaced = run.replaced_since(selection) if selection else ()
    if {point.step, run.final.step}.isdisjoint(replaced):
        return selection
    logger.warning(
        "step %s was replaced after the point was chosen: the export's card has no scores. Choose "
        "again with `backtrack select`.", ", ".join(map(str, replaced)),
    )  # fmt: skip
    return None


def _default_form(run: Run, selection: Selection | None) -> AsForm:
    """The form in which points were measured, or would be."""
    form = selection.form if selection else resolve_form_and_curve(run, "auto", "auto")[0]
    return "adapter" if form == "attached" else "merged"


def _placement(run: Run, form: AsForm, selection: Selection | None, device: str) -> Placement:
    if form == "adapter" and not is_adapter(run.folder(run.final.step)):
        raise UsageError(
            f"{run.path} is a run of whole models: it has no adapter. Use --as merged."
        )
    if form == "adapter":
        _require_adapter_form(run)
        return Placement(run, form="attached", device=device)
    return Placement(
        run, form="merged", curve=selection.curve if selection else "auto", device=device
    )


def _require_adapter_form(run: Run) -> None:
    config = read_adapter_config(run.folder(run.final.step))
    why_line_only = tuner_of(config).why_line_only
    if why_line_only:
        raise UsageError(
            f"{run.path}: {why_line_only}, so no {config.peft_type} adapter is between the base "
            "and the checkpoint. Use --as merged."
        )


def _measure_again(
    run: Run, placement: Placement, selection: Selection | None
) -> tuple[Measurement, ...]:
    """Measure the chosen point's report items again if the selection's form is the other one.

    Nothing is measured if the scores are a vLLM engine's: those of transformers would not be
    comparable.
    """
    recipe = run.choosing.recipe if run.choosing else None
    if selection is None or placement.form == selection.form or recipe is None:
        return ()
    if not recipe.engine.is_in_process:
        return ()
    from backtrack.evaluate.build import build_objectives
    from backtrack.evaluate.engine import RunFacts
    from backtrack.evaluate.measure import measure
    from backtrack.evaluate.transformers_engine import TransformersEngine

    items_by_objective = {
        m.objective.name: m.item_ids
        for m in run.measurements()
        if m.split == "report"
        and m.point == selection.chosen
        and m.setting == selection.settings.get(m.objective.name)
    }
    facts = RunFacts(run.base, run.final, run.path, recipe.search.batch_size)
    engine = TransformersEngine(placement, recipe.engine, facts)
    repeated: list[Measurement] = []
    for objective in build_objectives(recipe, placement.tokenizer):
        items = items_by_objective.get(objective.info.name)
        if items is not None:
            measurement = measure(
                objective,
                engine,
                items,
                split="report",
                origin="export",
                setting=setting_digest(
                    run.model_digest,
                    engine.form,
                    engine.curve,
                    recipe.engine.decisive,
                    objective.info.fingerprint,
                ),
                checkpoint=run.checkpoint_digest(engine.point),
            )
            run.record(measurement)
            repeated.append(measurement)
    return tuple(repeated)
