"""Make a run of what others wrote: by reference, copying nothing.

Covered: folders that transformers and TRL write (`checkpoint-*`, whole models or PEFT adapters), a
single adapter or fine-tuned model against its base, torchtune's `epoch_*`, verl's `global_step_*`,
and whole models as torch's distributed checkpoints (FSDP's `.distcp`) or DeepSpeed ZeRO folders,
which are put together when they are read. Only finished checkpoints are taken: one without
readable weights is named and left out, never guessed at.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtrack.errors import CheckpointError, RunError, UsageError
from backtrack.records import BaseModelReference, CheckpointEntry, Manifest, Method
from backtrack.records.record import now
from backtrack.run.checkpoint_reader import base_folder, fingerprint, shapes
from backtrack.run.checkpoint_writer import WEIGHT_SUFFIX, describe_checkpoint, digest, is_adapter
from backtrack.run.directory import MANIFEST, Run
from backtrack.run.files import write_atomically
from backtrack.run.finding import is_run
from backtrack.run.foreign_formats import find_weights, foreign_shapes, weight_files_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backtrack.recipe import Recipe

logger = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"^(checkpoint|step|global_step|epoch)[-_]?(\d+)$")
_PLACES = (".", "actor/lora_adapter", "lora_adapter", "actor/huggingface", "huggingface")
"""Where in a checkpoint's folder safetensors may lie; verl has one of its own for each kind."""


def adopt(  # noqa: PLR0913  # the front door: every argument but the source is optional
    source: str | Path,
    *,
    base: str | None = None,
    name: str | None = None,
    runs: str | Path = "runs",
    recipe: Recipe | None = None,
    initial: str | Path | None = None,
    on_skip: Callable[[str], None] = logger.warning,
) -> Run:
    """Make a run of a folder of checkpoints, one adapter, or one fine-tuned model.

    Args:
        source: Folder with `checkpoint-*` folders, an adapter or a model in it.
        base: Hub name or folder of the base; needed where the checkpoints do not name it.
        name: Name of the run; the default is the folder's.
        runs: Folder the run is made in.
        recipe: Objectives and settings to search with.
        initial: Adapter saved before the first step; needed where its initialization rewrote the
            base and loading cannot find its factors again (PiSSA by iterations, CorDA, LoRA-GA).
        on_skip: Called with a sentence for each checkpoint that cannot be read and is left out.

    Returns:
        The run, opened; one that was adopted from the same folder before is brought up to date.

    Raises:
        UsageError: The base is not known.
        RunError: No checkpoints, another base, or a run of that name from elsewhere.
        CheckpointError: A base whose weights cannot be read.
    """
    source = Path(source).resolve()
    folders = _find_checkpoints(source)
    entries, skipped = _describe(folders)
    if not entries:
        raise RunError(f"{source} has no checkpoint that can be read: {' '.join(skipped)}")
    last = Path(entries[-1].source or entries[-1].folder)
    settings = _read_json(last / "adapter_config.json") if is_adapter(last) else None
    reference = _base_reference(base or _named_base(last, settings, recipe), recipe)
    if settings is None:
        entries = _fitting(entries, reference, skipped)
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
    for sentence in skipped:
        on_skip(sentence)
    return run


def _require_adapter(folder: Path) -> Path:
    if not is_adapter(folder):
        raise UsageError(
            f"{folder} is no adapter: it has no adapter_config.json. Name the folder that "
            "`save_pretrained` wrote before the first step."
        )
    return folder


def _find_checkpoints(source: Path) -> list[tuple[int, Path]]:
    """Steps and folders of every checkpoint, ascending.

    Weights beside `checkpoint-*` folders are left out: a Trainer's last checkpoint holds the same.
    """
    if not source.is_dir():
        raise RunError(
            f"{source} is no folder. Name a folder with `checkpoint-*`, an adapter or a model."
        )
    named = [
        (match, folder)
        for folder in source.iterdir()
        if folder.is_dir() and (match := _CHECKPOINT.match(folder.name))
    ]
    # Epochs are counted from 0, and step 0 is the base.
    numbered = [(int(m.group(2)) + (m.group(1) == "epoch"), folder) for m, folder in named]
    if any(step for step, _ in numbered):
        return sorted((step, folder) for step, folder in numbered if step)
    if is_adapter(source) or (source / "config.json").is_file() or find_weights(source):
        return [(1, source)]
    raise RunError(
        f"{source} holds no checkpoint: no `checkpoint-*` folder, no adapter_config.json and no "
        "config.json. Name the folder a Trainer wrote into (its output_dir), an adapter or a "
        "model."
    )


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
    places = (folder / place for place in _PLACES)
    plain = next((place for place in places if any(place.glob(f"*{WEIGHT_SUFFIX}"))), None)
    found = find_weights(folder) if plain is None else None
    if found is None:
        place = (plain or folder).resolve()
        shapes(place)
        return describe_checkpoint(place, step, folder=str(place), train_loss=loss)
    storage, source = found
    files = weight_files_of(storage, source)
    return CheckpointEntry(
        step=step,
        folder=f"step-{step:08d}",
        num_bytes=sum(path.stat().st_size for path in files),
        sha256={path.name: digest(path) for path in files},
        train_loss=loss,
        storage=storage,
        source=str(source),
    )


def _train_loss(folder: Path, step: int) -> float | None:
    """The loss a Trainer logged last up to the step, if it left its state."""
    state = _read_json(folder / "trainer_state.json")
    history = state.get("log_history", []) if isinstance(state, dict) else []
    losses = [
        entry["loss"]
        for entry in history
        if isinstance(entry, dict)
        and isinstance(entry.get("loss"), int | float)
        and entry.get("step", 0) <= step
    ]
    return float(losses[-1]) if losses else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return values if isinstance(values, dict) else {}


def _named_base(last: Path, settings: Mapping[str, Any] | None, recipe: Recipe | None) -> str:
    if settings and settings.get("base_model_name_or_path"):
        return str(settings["base_model_name_or_path"])
    if recipe is not None:
        return recipe.base.model
    raise UsageError(
        f"{last} does not say which model it was trained from. Name it: `--base NAME-OR-FOLDER`."
    )


def _base_reference(model: str, recipe: Recipe | None) -> BaseModelReference:
    section = recipe.base if recipe is not None else None
    bare = BaseModelReference(
        model=str(Path(model).resolve()) if Path(model).is_dir() else model,
        revision=section.revision if section else None,
        dtype=section.dtype if section else "auto",
        trust_remote_code=section.trust_remote_code if section else False,
        quantization=section.quantization if section else None,
    )
    return bare.model_copy(update={"fingerprint": fingerprint(base_folder(bare))})


def _fitting(
    entries: list[CheckpointEntry], reference: BaseModelReference, skipped: list[str]
) -> list[CheckpointEntry]:
    """Entries whose tensors can be read; those that cannot are told to `skipped`.

    Raises:
        RunError: One has other shapes than the base, or none is left.
    """
    base = shapes(base_folder(reference))
    fitting: list[CheckpointEntry] = []
    for entry in entries:
        try:
            found = (
                foreign_shapes(entry.storage, Path(entry.source), base)
                if entry.source
                else shapes(Path(entry.folder))
            )
        except CheckpointError as error:
            skipped.append(f"{entry.source or entry.folder}: {error}")
            continue
        _require_fit(entry, found, base, reference)
        fitting.append(entry)
    if not fitting:
        raise RunError(f"no checkpoint can be read: {' '.join(skipped)}")
    return fitting


def _require_fit(
    entry: CheckpointEntry,
    found: Mapping[str, tuple[int, ...]],
    base: Mapping[str, tuple[int, ...]],
    reference: BaseModelReference,
) -> None:
    """Refuse a whole model whose tensors have other shapes than the base's."""
    wrong = [name for name in sorted(set(base) & set(found)) if base[name] != found[name]]
    if wrong or not set(base) & set(found):
        first = wrong[0] if wrong else min(found)
        raise RunError(
            f"{entry.source or entry.folder} was not trained from {reference.model}: {first} has "
            f"shape {found.get(first)}, the base's is {base.get(first)}. Give the right one with "
            "--base."
        )


def _method(settings: Mapping[str, Any] | None) -> Method:
    if settings is None:
        return Method(kind="full")
    return Method(kind=str(settings.get("peft_type", "unknown")).lower(), settings=dict(settings))


def _create(
    path: Path, manifest: Manifest, entries: list[CheckpointEntry], recipe: Recipe | None
) -> Run:
    """A new run, or the one made of the same source before, with what has come since."""
    if is_run(path):
        run = Run.open(path)
        if run.manifest.source != manifest.source:
            raise RunError(
                f"{path} is a run from {run.manifest.source or 'here'}. Take another --name."
            )
        if run.manifest.base.fingerprint != manifest.base.fingerprint:
            raise RunError(f"{path} was adopted against another base. Take another --name.")
        if recipe is not None:
            run.write_recipe(recipe)
        if manifest.initial is not None and manifest.initial != run.manifest.initial:
            run = _with_initial(run, manifest.initial)
    else:
        run = Run.create(path, manifest, recipe)
    for entry in entries:
        if entry.step not in run.steps or run.entry(entry.step) != entry:
            if entry.source:
                _put_configuration(run, entry)
            run.add_entry(entry)
    return run


def _with_initial(run: Run, initial: str) -> Run:
    """The run, told where its adapter's initial state lies."""
    manifest = run.manifest.model_copy(update={"initial": initial})
    write_atomically(run.path / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return Run.open(run.path)


def _put_configuration(run: Run, entry: CheckpointEntry) -> None:
    """The folder of a step whose weights lie elsewhere: its configuration, or else the base's."""
    folder = run.trajectory / entry.folder
    folder.mkdir(exist_ok=True)
    source = Path(entry.source or "")
    places = (source, source / "huggingface", source.parent, base_folder(run.base))
    found = next((place for place in places if (place / "config.json").is_file()), None)
    for name in ("config.json", "generation_config.json"):
        if found is not None and (found / name).is_file():
            write_atomically(folder / name, (found / name).read_bytes())
