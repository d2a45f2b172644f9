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
from backtrack.formatting import command
from backtrack.recipe import ChoosingRecipe
from backtrack.records import BaseModelReference, CheckpointEntry, Manifest, Method
from backtrack.records.adapter_config import in_order
from backtrack.records.places import base_name
from backtrack.records.record import now
from backtrack.run.adoption.fitting import fitting
from backtrack.run.adoption.folders import find_checkpoints, folder_of_run, plain_weights
from backtrack.run.adoption.language_model import (
    require_language_head,
    require_language_model,
    trained_architecture,
)
from backtrack.run.adoption.last_save import last_save
from backtrack.run.adoption.notes import adoption_notes
from backtrack.run.adoption.refreshing import tell_replaced
from backtrack.run.checkpoint_reader import base_folder, fingerprint
from backtrack.run.checkpoint_writer import (
    describe_checkpoint,
    digest,
    is_adapter,
    latest_change,
)
from backtrack.run.directory import Run
from backtrack.run.files import read_record
from backtrack.run.finding import is_run
from backtrack.run.foreign.formats import find_weights, weight_files_of
from backtrack.run.model_files import keep_model_files
from backtrack.run.trust import allow, code_of_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from backtrack.recipe import Recipe
    from backtrack.records.run import Dtype

logger = logging.getLogger(__name__)


def adopt(  # noqa: PLR0913  # public: every argument but the source is optional
    source: str | Path,
    *,
    base: str | None = None,
    name: str | None = None,
    runs: str | Path = "runs",
    recipe: Recipe | None = None,
    initial: str | Path | None = None,
    dtype: Dtype | None = None,
    on_skip: Callable[[str], None] = logger.warning,
    on_note: Callable[[str], None] = logger.warning,
) -> Run:
    """Make a run from a folder of checkpoints, one adapter, or one fine-tuned model.

    Args:
        source: Folder that has `checkpoint-*` folders, an adapter or a model.
        base: Hub name or folder of the base; needed if neither the checkpoints nor an earlier
            adoption name it. A Hub model that an adapter's configuration names is taken at the
            revision named there, unless the recipe names another.
        name: Name of the run; the default is the folder's.
        runs: Folder to make the run in.
        recipe: Objectives and settings of the search.
        initial: Adapter saved before the first step; needed if its initialization rewrote the
            base and cannot be recomputed on loading (PiSSA by iterations, CorDA, LoRA-GA).
        dtype: Dtype that the base and whole models are loaded in; the default is the recipe's, or
            that of the base's files.
        on_skip: Called with a message for each checkpoint that cannot be read and is skipped.
        on_note: Called with each sentence that a reader of the scores should know: what is left
            out or rounded, and where answers end. The manifest keeps them.

    Returns:
        The run, opened; if the same folder was adopted before, that run with newer checkpoints,
        and with the folders of checkpoints and base as they are now.

    Raises:
        UsageError: The name is a path, or the base is unknown or an adapter itself.
        RunError: No checkpoints, no language models, another base, or a run of that name from
            another source.
        CheckpointError: The weights of the base cannot be read.
    """
    _require_plain(name)
    source = folder_of_run(Path(source).resolve())
    entries, skipped = _describe(find_checkpoints(source))
    if not entries:
        raise RunError(f"{source} has no checkpoint that can be read: {' '.join(skipped)}")
    try:
        entries += last_save(source, entries)
    except CheckpointError as error:
        skipped.append(str(error))
    last = Path(entries[-1].source or entries[-1].folder)
    config = last / "adapter_config.json"
    settings = read_record(config, dict[str, Any]) if is_adapter(last) else None
    path = Path(runs) / (name or source.name or "adopted")
    model = base or _named_base(last, settings, recipe, _recorded_base(path, source))
    require_language_model(last, settings)
    reference = _base_reference(model, recipe, _named_revision(model, settings))
    reference = reference.model_copy(update={"dtype": dtype or reference.dtype})
    entries, refused = fitting(entries, reference)
    if settings is not None:
        kept = Path(entries[-1].folder)
        require_language_head(kept)
        architecture = trained_architecture(kept, base_folder(reference))
        reference = reference.model_copy(update={"architecture": architecture})
    manifest = Manifest(
        name=path.name,
        base=reference,
        method=_method(settings),
        source=str(source),
        initial=None if initial is None else str(_require_adapter(Path(initial).resolve())),
        created=now(),
    )
    run = _create(path, manifest, entries, recipe)
    logger.info("adopted %s as %s: %d checkpoints", source, run.path, len(run.steps))
    for sentence in (*skipped, *refused):
        on_skip(sentence)
    _keep_notes(run, on_note)
    return run


def _require_plain(name: str | None) -> None:
    """Refuse a name that is a path: a run lies in the folder of the runs."""
    if name is not None and (Path(name).name != name or name in {"", ".."}):
        raise UsageError(
            f"the name {name!r} is a path, but a run is a folder of `runs/`. Give a plain name; "
            "a run can be moved afterwards."
        )


def _keep_notes(run: Run, on_note: Callable[[str], None]) -> None:
    for note in run.keep_notes(adoption_notes(run)):
        on_note(note)


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


def _recorded_base(path: Path, source: Path) -> str | None:
    """The base of the run that was adopted from the same folder before."""
    if not is_run(path):
        return None
    manifest = Run.open(path).manifest
    return manifest.base.model if manifest.source == str(source) else None


def _named_base(
    last: Path, settings: Mapping[str, Any] | None, recipe: Recipe | None, recorded: str | None
) -> str:
    """The base by the adapter's configuration, the recipe, or an earlier adoption, in this order.

    A folder that the adapter's configuration names, and that is gone, comes last.
    """
    named = str((settings or {}).get("base_model_name_or_path") or "")
    is_gone = Path(named).is_absolute() and not Path(named).is_dir()
    in_recipe = recipe.base.model if recipe is not None else None
    found = ("" if is_gone else named) or in_recipe or recorded or named
    if found:
        return found
    raise UsageError(
        f"{last} does not say which model it was trained from. Name it: `--base NAME-OR-FOLDER`."
    )


def _named_revision(model: str, settings: Mapping[str, Any] | None) -> str | None:
    """The Hub revision that an adapter's configuration pins its base to; None if it pins none.

    It says nothing of another model that the user names as the base, nor of a folder.
    """
    is_pinned = settings and settings.get("revision") and not Path(base_name(model)).is_absolute()
    if not settings or not is_pinned or settings.get("base_model_name_or_path") != model:
        return None
    return str(settings["revision"])


def _base_reference(model: str, recipe: Recipe | None, revision: str | None) -> BaseModelReference:
    """The base, by the recipe's settings; a revision that the recipe names is preferred."""
    section = recipe.base if recipe is not None else None
    bare = BaseModelReference(
        model=base_name(model),
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
    kind = str(settings.get("peft_type", "unknown")).lower()
    return Method(kind=kind, settings=in_order(settings))


def _create(
    path: Path, manifest: Manifest, entries: list[CheckpointEntry], recipe: Recipe | None
) -> Run:
    """A new run, or the run adopted from the same source before, with newer checkpoints added."""
    if is_run(path):
        run = Run.open(path)
        _require_same_run(run, manifest, entries)
        renewed = _renewed(run.manifest, manifest)
        if renewed != run.manifest:
            run.write_manifest(renewed)
    else:
        run = Run.create(path, manifest)
    if recipe is not None:
        allow(run.manifest, code_of_recipe(recipe))
        run.choose_by(ChoosingRecipe(recipe=recipe))
        run.save_choosing()
    replaced = []
    for found in entries:
        old = run.entry(found.step) if found.step in run.steps else None
        entry = found if old is None else found.as_recorded(old)
        if old != entry:
            replaced += [entry.step] if old and old.digest != entry.digest else []
            if entry.source:
                (run.trajectory / entry.folder).mkdir(exist_ok=True)
            run.add_entry(entry)
    folders = _folders_around(entries[-1], Path(manifest.source or path))
    keep_model_files(run.path, folders, has_config=manifest.method.kind == "full")
    tell_replaced(run, replaced)
    return run


def _folders_around(last: CheckpointEntry, source: Path) -> Iterator[Path]:
    """Folders in which a checkpoint's files may lie, from its weights up to the adopted folder.

    FSDP and verl keep them beside the shards; some trainers keep the tokenizer at the top only.
    """
    weights = Path(last.source or last.folder)
    parents = [p for p in weights.parents if p.is_relative_to(source)]
    for folder in dict.fromkeys([weights, *parents, source]):
        yield folder
        yield folder / "huggingface"


def _renewed(old: Manifest, new: Manifest) -> Manifest:
    """The manifest with folders and base as they are named now."""
    base = new.base
    if old.base.fingerprint == base.fingerprint:
        base = old.base.model_copy(update={"model": base.model, "revision": base.revision})
    initial = new.initial or old.initial
    return old.model_copy(update={"source": new.source, "base": base, "initial": initial})


def _require_same_run(run: Run, manifest: Manifest, entries: list[CheckpointEntry]) -> None:
    """Raise an error unless a run was adopted from these checkpoints and this base.

    A source that is gone may have moved: then the recorded checkpoints must be among these. A run
    without measurements may be adopted again with another base.
    """
    old, path = run.manifest, run.path
    if old.source != manifest.source and not _has_moved(run, entries):
        raise RunError(
            f"{path} is already a run of {old.source or 'backtrack'}. "
            f"{_under_another_name(manifest)}"
        )
    is_measured = (path / "measurements.jsonl").exists()
    if is_measured and old.base.fingerprint != manifest.base.fingerprint:
        raise RunError(
            f"{path} was adopted and measured with another base, {old.base.model}. "
            f"{_under_another_name(manifest)}"
        )
    if manifest.base.dtype not in {"auto", old.base.dtype}:
        raise RunError(
            f"{path} was adopted with dtype {old.base.dtype}, for which its scores hold. "
            f"{_under_another_name(manifest)}"
        )


def _has_moved(run: Run, entries: list[CheckpointEntry]) -> bool:
    found = {entry.step: entry.sha256 for entry in entries}
    source = run.manifest.source
    is_gone = source is not None and not Path(source).exists()
    return is_gone and all(found.get(entry.step) == entry.sha256 for entry in run.entries())


def _under_another_name(manifest: Manifest) -> str:
    """What to do if the name of the run is taken."""
    base = manifest.base.model
    again = command("adopt", manifest.source, "--base", base, "--name", "NAME")
    return f"Choose another name: {again}."
