"""Make a run of what others wrote: by reference, copying nothing.

Covered: folders that transformers and TRL write (`checkpoint-*`, whole models or PEFT adapters),
and a single adapter or fine-tuned model against its base. Only finished checkpoints are taken:
one without readable weights is named and left out, never guessed at.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtrack.errors import CheckpointError, RunError, UsageError
from backtrack.records import BaseModelReference, Manifest, Method
from backtrack.run.directory import MANIFEST, Run, now
from backtrack.run.reader import base_folder, fingerprint, shapes
from backtrack.run.writer import describe_checkpoint, is_adapter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backtrack.recipe import Recipe
    from backtrack.records import CheckpointEntry

logger = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"^(?:checkpoint|step|global_step)[-_]?(\d+)$")


def adopt(
    source: str | Path,
    *,
    base: str | None = None,
    name: str | None = None,
    runs: str | Path = "runs",
    recipe: Recipe | None = None,
    on_skip: Callable[[str], None] = logger.warning,
) -> Run:
    """Make a run of a folder of checkpoints, one adapter, or one fine-tuned model.

    Args:
        source: Folder with `checkpoint-*` folders, an adapter or a model in it.
        base: Hub name or folder of the base; needed where the checkpoints do not name it.
        name: Name of the run; the default is the folder's.
        runs: Folder the run is made in.
        recipe: Objectives and settings to search with.
        on_skip: Called with a sentence for each checkpoint that cannot be read and is left out.

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
    last = Path(entries[-1].folder)
    settings = _read_json(last / "adapter_config.json") if is_adapter(last) else None
    reference = _base_reference(base or _named_base(last, settings, recipe), recipe)
    if settings is None:
        _require_fit(entries, reference)
    manifest = Manifest(
        name=name or source.name or "adopted",
        base=reference,
        method=_method(settings),
        source=str(source),
        created=now(),
    )
    run = _create(Path(runs) / manifest.name, manifest, entries, recipe)
    for sentence in skipped:
        on_skip(sentence)
    return run


def is_run(path: Path) -> bool:
    """Whether a directory is a run already."""
    return (path / MANIFEST).is_file()


def _find_checkpoints(source: Path) -> list[tuple[int, Path]]:
    """Steps and folders of every checkpoint, ascending.

    Weights beside `checkpoint-*` folders are left out: a Trainer's last checkpoint holds the same.
    """
    if not source.is_dir():
        raise RunError(
            f"{source} is no folder. Name a folder with `checkpoint-*`, an adapter or a model."
        )
    numbered = [
        (int(match.group(1)), folder)
        for folder in source.iterdir()
        if folder.is_dir() and (match := _CHECKPOINT.match(folder.name)) and int(match.group(1))
    ]
    if numbered:
        return sorted(numbered)
    if is_adapter(source) or (source / "config.json").is_file():
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
            shapes(folder)
            loss = _train_loss(folder, step)
            entries.append(describe_checkpoint(folder, step, folder=str(folder), train_loss=loss))
        except CheckpointError as error:
            skipped.append(str(error))
    return entries, skipped


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


def _require_fit(entries: list[CheckpointEntry], reference: BaseModelReference) -> None:
    """Refuse whole models whose tensors have other shapes than the base's."""
    base = shapes(base_folder(reference))
    for entry in entries:
        found = shapes(Path(entry.folder))
        wrong = [name for name in sorted(set(base) & set(found)) if base[name] != found[name]]
        if wrong or not set(base) & set(found):
            first = wrong[0] if wrong else min(found)
            raise RunError(
                f"{entry.folder} was not trained from {reference.model}: {first} has shape "
                f"{found.get(first)}, the base's is {base.get(first)}. Give the right one with "
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
    else:
        run = Run.create(path, manifest, recipe)
    for entry in entries:
        if entry.step not in run.steps or run.entry(entry.step) != entry:
            run.add_entry(entry)
    return run
