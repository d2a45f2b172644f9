"""Adopt other trainers' checkpoints as a run, by reference and without copying weights.

Covered: folders that transformers and TRL write (`checkpoint-*`, whole models or PEFT adapters), a
single adapter or fine-tuned model, torchtune's `epoch_*`, verl's `global_step_*`, and whole models
as torch's distributed checkpoints (FSDP's `.distcp`) or DeepSpeed ZeRO folders, which are
assembled when they are read. A checkpoint without readable weights is reported and skipped.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtrack.errors import CheckpointError, RunError, UsageError
from backtrack.recipe import ChoosingRecipe
from backtrack.records import BaseModelReference, CheckpointEntry, Manifest, Method
from backtrack.records.record import now
from backtrack.run.adoption.fitting import fitting
from backtrack.run.adoption.folders import find_checkpoints, folder_of_run, plain_weights
from backtrack.run.adoption.last_save import last_save
from backtrack.run.checkpoint_reader import base_folder, fingerprint
from backtrack.run.checkpoint_writer import (
    describe_checkpoint,
    digest,
    is_adapter,
    latest_change,
    weight_files,
)
from backtrack.run.directory import MANIFEST, Run
from backtrack.run.files import read_record, write_atomically
from backtrack.run.finding import is_run
from backtrack.run.foreign.formats import find_weights, weight_files_of
from backtrack.run.trust import allow, code_of_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backtrack.recipe import Recipe

logger = logging.getLogger(__name__)


def adopt(  # noqa: PLR0913  # public: every argument but the source is optional
    source: str | Path,
    *,
    base: str | None = None,
    name: str | None = None,
    runs: str | Path = "runs",
    recipe: Recipe | None = None,
    initial: str | Path | None = None,
    on_skip: Callable[[str], None] = logger.warning,
) -> Run:
    """Make a run from a folder of checkpoints, one adapter, or one fine-tuned model.

    Args:
        source: Folder that has `checkpoint-*` folders, an adapter or a model.
        base: Hub name or folder of the base; needed if the checkpoints do not name it. A Hub
            model that an adapter's configuration names is taken at the revision named there,
            unless the recipe names another.
        name: Name of the run; the default is the folder's.
        runs: Folder to make the run in.
        recipe: Objectives and settings of the search.
        initial: Adapter saved before the first step; needed if its initialization rewrote the
            base and cannot be recomputed on loading (PiSSA by iterations, CorDA, LoRA-GA).
        on_skip: Called with a message for each checkpoint that cannot be read and is skipped.

    Returns:
        The run, opened; if the same folder was adopted before, that run with newer checkpoints.

    Raises:
        UsageError: The base is unknown, or an adapter itself.
        RunError: No checkpoints, another base, or a run of that name from another source.
        CheckpointError: The weights of the base cannot be read.
    """
    source = folder_of_run(Path(source).resolve())
    entries, skipped = _describe(find_checkpoints(source))
    if not entries:
        raise RunError(f"{source} has no checkpoint that can be read: {' '.join(skipped)}")
    try:
        entries += last_save(source, entries)
    except CheckpointError as error:
        skipped.append(str(error))
    last = Path(entries[-1].source or entries[-1].folder)
    path = last / "adapter_config.json"
    settings = read_record(path, dict[str, Any]) if is_adapter(last) else None
    model = base or _named_base(last, settings, recipe)
    reference = _base_reference(model, recipe, _named_revision(model, settings))
    entries, refused = fitting(entries, reference)
    manifest = Manifest(
        name=name or source.name or "adopted",
        base=reference,
        method=_method(settings),
        source=str(source),
        initial=None if initial is None else str(_require_adapter(Path(initial).resolve())),
        created=now(),
    )
    run = _create(Path(runs) / manifest.name, manifest, entries, recipe)
    logger.info("adopted %s as %s: %d checkpoints", source, run.path, len(run.steps))
    for sentence in (*skipped, *refused):
        on_skip(sentence)
    return run


def _require_adapter(folder: Path) -> Path:
    if not is_adapter(folder):
        raise UsageError(
            f"{folder} is not an adapter: it has no adapter_config.json. Name the folder that "
            "`save_pretrained` wrote before the first step."
        )
    return folder


def _describe(folders: list[tuple[int, Path]]) -> tuple[list[CheckpointEntry], list[str]]:
    entries: list[CheckpointEntry] = []
    skipped: list[str] = []
    for step, folder in folders:
        try:
            entries.append(_entry(folder, step))
        except CheckpointError as error:
            skipped.append(str(error))
    return entries, skipped


def _entry(folder: Path, step: int) -> CheckpointEntry:
    loss = _train_loss(folder, step)
    plain = plain_weights(folder)
    foreign = find_weights(folder) if plain is None else None
    if foreign is None:
        weights = (plain or folder).resolve()
        return describe_checkpoint(weights, step, folder=str(weights), train_loss=loss)
    storage, source = foreign
    files = weight_files_of(storage, source)
    return CheckpointEntry(
        step=step,
        folder=f"step-{step:08d}",
        num_bytes=sum(path.stat().st_size for path in files),
        sha256={path.name: digest(path) for path in files},
        modified_ns=latest_change(files),
        train_loss=loss,
        storage=storage,
        source=str(source),
    )


def _train_loss(folder: Path, step: int) -> float | None:
    """The latest loss that a Trainer logged up to the step, if it saved its state."""
    path = folder / "trainer_state.json"
    try:
        state = read_record(path, dict[str, Any]) if path.is_file() else {}
    except RunError as error:
        logger.warning("%s The step's training loss is left out.", error)
        return None
    history = state.get("log_history")
    losses = [
        entry["loss"]
        for entry in (history if isinstance(history, list) else [])
        if isinstance(entry, dict)
        and isinstance(entry.get("loss"), int | float)
        and isinstance(entry.get("step", 0), int | float)
        and entry.get("step", 0) <= step
    ]
    return float(losses[-1]) if losses else None


def _named_base(last: Path, settings: Mapping[str, Any] | None, recipe: Recipe | None) -> str:
    if settings and settings.get("base_model_name_or_path"):
        return str(settings["base_model_name_or_path"])
    if recipe is not None:
        return recipe.base.model
    raise UsageError(
        f"{last} does not say which model it was trained from. Name it: `--base NAME-OR-FOLDER`."
    )


def _named_revision(model: str, settings: Mapping[str, Any] | None) -> str | None:
    """The Hub revision that an adapter's configuration pins its base to; None if it pins none.

    It says nothing of another model that the user names as the base, nor of a folder.
    """
    is_pinned = settings and settings.get("revision") and not Path(model).is_dir()
    if not settings or not is_pinned or settings.get("base_model_name_or_path") != model:
        return None
    return str(settings["revision"])


def _base_reference(model: str, recipe: Recipe | None, revision: str | None) -> BaseModelReference:
    """The base, by the recipe's settings; a revision that the recipe names is preferred."""
    section = recipe.base if recipe is not None else None
    bare = BaseModelReference(
        model=str(Path(model).resolve()) if Path(model).is_dir() else model,
        revision=(section.revision if section else None) or revision,
        dtype=section.dtype if section else "auto",
        trust_remote_code=section.trust_remote_code if section else False,
        quantization=section.quantization if section else None,
    )
    folder = base_folder(bare)
    if is_adapter(folder):
        raise UsageError(
            f"the base {model} is itself an adapter, which no path begins at. Merge it into a "
            "model (`PeftModel.merge_and_unload`, `save_pretrained`) and name that with --base."
        )
    return bare.model_copy(update={"fingerprint": fingerprint(folder)})


def _method(settings: Mapping[str, Any] | None) -> Method:
    if settings is None:
        return Method(kind="full")
    return Method(kind=str(settings.get("peft_type", "unknown")).lower(), settings=dict(settings))


def _create(
    path: Path, manifest: Manifest, entries: list[CheckpointEntry], recipe: Recipe | None
) -> Run:
    """A new run, or the run adopted from the same source before, with newer checkpoints added."""
    rename = f"Choose another name: `backtrack adopt {manifest.source} --name NAME`."
    if is_run(path):
        run = Run.open(path)
        if run.manifest.source != manifest.source:
            raise RunError(
                f"{path} is already a run of {run.manifest.source or 'backtrack'}. {rename}"
            )
        if run.manifest.base.fingerprint != manifest.base.fingerprint:
            raise RunError(
                f"{path} was adopted with another base, {run.manifest.base.model}. {rename}"
            )
        if manifest.initial is not None and manifest.initial != run.manifest.initial:
            run = _with_initial(run, manifest.initial)
    else:
        run = Run.create(path, manifest)
    if recipe is not None:
        allow(run.manifest, code_of_recipe(recipe))
        run.choose_by(ChoosingRecipe(recipe=recipe))
        run.save_choosing()
    replaced = []
    for entry in entries:
        old = run.entry(entry.step) if entry.step in run.steps else None
        if old != entry:
            replaced += [entry.step] if old and old.digest != entry.digest else []
            if entry.source:
                _copy_configuration(run, entry)
            run.add_entry(entry)
    _tell_replaced(run, replaced)
    return run


def refresh(run: Run) -> None:
    """Digest the checkpoints of an adopted run again where their files changed since.

    A checkpoint that was replaced is named in a warning. Measurements name the digest, so its
    points count as not measured, and those of other checkpoints stay.
    """
    if run.manifest.source is None:
        return
    replaced = []
    for entry in run.entries():
        new = _digested_again(run, entry)
        if new != entry:
            run.add_entry(new)
            replaced += [entry.step] if new.digest != entry.digest else []
    _tell_replaced(run, replaced)


def _digested_again(run: Run, entry: CheckpointEntry) -> CheckpointEntry:
    """The entry as its files are now; unchanged if they are, or if they cannot be read."""
    try:
        folder = run.folder(entry.step)
        source = Path(entry.source) if entry.source else None
        files = weight_files_of(entry.storage, source) if source else weight_files(folder)
        num_bytes = sum(path.stat().st_size for path in files)
        if (num_bytes, latest_change(files)) == (entry.num_bytes, entry.modified_ns):
            return entry
        facts = {
            "num_bytes": num_bytes,
            "sha256": {path.name: digest(path) for path in files},
            "modified_ns": latest_change(files),
        }
    except (CheckpointError, RunError, OSError):
        return entry  # reading the step names the cause
    return entry.model_copy(update=facts)


def _tell_replaced(run: Run, steps: Sequence[int]) -> None:
    if steps:
        logger.warning(
            "%s: the checkpoint%s of step %s changed since it was adopted. Its points are "
            "measured again; earlier scores are of other weights, and are kept but not used.",
            run.path, "s" if len(steps) > 1 else "", ", ".join(map(str, steps)),
        )  # fmt: skip


def _with_initial(run: Run, initial: str) -> Run:
    """Record the folder of the initial adapter in the manifest, and reopen the run."""
    manifest = run.manifest.model_copy(update={"initial": initial})
    write_atomically(run.path / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return Run.open(run.path)


def _copy_configuration(run: Run, entry: CheckpointEntry) -> None:
    """Copy the configuration of a step whose weights are elsewhere, or else the base's."""
    folder = run.trajectory / entry.folder
    folder.mkdir(exist_ok=True)
    source = Path(entry.source or "")
    candidates = (source, source / "huggingface", source.parent, base_folder(run.base))
    origin = next((path for path in candidates if (path / "config.json").is_file()), None)
    for name in ("config.json", "generation_config.json"):
        if origin is not None and (origin / name).is_file():
            write_atomically(folder / name, (origin / name).read_bytes())
