"""Hold every checkpoint of an adopted folder to the rules of the last one, by file headers.

An adapter must have the tensors and shapes of the last one: PEFT leaves out what it does not know
and keeps what is missing at the value that is in the model. A whole model must have the shapes of
the base, and may lack a tensor of the last one only if it is saved under other names, or tied.
What headers cannot decide, such as names of another release, is decided when the step is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtrack.errors import CheckpointError, RunError
from backtrack.run.checkpoint_reader import base_folder, shapes
from backtrack.run.checkpoint_writer import is_adapter
from backtrack.run.files import read_record
from backtrack.run.foreign.formats import Shapes, foreign_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backtrack.records import BaseModelReference, CheckpointEntry


def fitting(
    entries: Iterable[CheckpointEntry], reference: BaseModelReference
) -> tuple[list[CheckpointEntry], list[str]]:
    """The entries that fit the base and the last of them, and why each other one does not.

    Raises:
        RunError: No checkpoint is left.
        CheckpointError: The weights of the base cannot be read.
    """
    base = shapes(base_folder(reference))
    kept: list[CheckpointEntry] = []
    refused: list[str] = []
    last: Shapes = {}
    for entry in reversed(list(entries)):
        try:
            found = _shapes_of(entry, base)
            _require_same_kind(entry, kept[-1:])
            if is_adapter(Path(entry.folder)):
                require_same_tensors(found, last or found, entry.folder)
            else:
                _require_fit(entry, found, base, reference)
                _require_complete(entry, found, last or base)
        except CheckpointError as error:
            refused.append(str(error))
            continue
        kept.insert(0, entry)
        last = last or found
    if not kept:
        raise RunError(f"no checkpoint can be read: {' '.join(refused)}")
    return kept, refused


def require_same_tensors(found: Shapes, last: Shapes, where: object) -> None:
    """Raise an error unless an adapter has the tensors of the run's last one, in its shapes.

    Raises:
        CheckpointError: With the name of the first tensor that differs.
    """
    differing = [name for name in sorted(found | last) if found.get(name) != last.get(name)]
    if not differing:
        return
    name = differing[0]
    if name not in found:
        what = f"lacks {name!r}, which the last checkpoint has"
    elif name not in last:
        what = f"has {name!r}, which the last checkpoint lacks"
    else:
        what = f"has {name!r} in shape {found[name]}, the last checkpoint in {last[name]}"
    raise CheckpointError(
        f"{where} {what} ({len(differing)} tensors differ). PEFT would load it as a mixture with "
        "whatever is in the model: save it again, or adopt it as a run of its own."
    )


def _require_same_kind(entry: CheckpointEntry, last: list[CheckpointEntry]) -> None:
    kinds = [
        "an adapter" if is_adapter(Path(each.folder)) else "a whole model"
        for each in (entry, *last)
    ]
    if kinds[0] != kinds[-1]:
        raise CheckpointError(
            f"{entry.folder} is {kinds[0]}, the last checkpoint is {kinds[-1]}. Adopt it as a run "
            "of its own."
        )


def _shapes_of(entry: CheckpointEntry, base: Shapes) -> Shapes:
    if entry.source:
        return foreign_shapes(entry.storage, Path(entry.source), base)
    found = shapes(Path(entry.folder))
    empty = [n for n, shape in found.items() if 0 in shape and 0 not in base.get(n, ())]
    if empty or not found:
        raise CheckpointError(
            f"{entry.folder} has {f'no values of {empty[0]}' if empty else 'no tensors'}: it was "
            "saved while the weights were divided among processes. With DeepSpeed ZeRO-3, set "
            "`stage3_gather_16bit_weights_on_model_save`."
        )
    return found


def _require_fit(
    entry: CheckpointEntry, found: Shapes, base: Shapes, reference: BaseModelReference
) -> None:
    """Raise an error if tensors of a whole model have other shapes than the base's.

    The embedding and the head may have other rows: training may add tokens, or remove padding.
    """
    vocabulary = _vocabulary_size(base_folder(reference))
    wrong = [
        name
        for name in sorted(set(base) & set(found))
        if base[name] != found[name] and not _is_resized(base[name], found[name], vocabulary)
    ]
    if wrong:
        raise CheckpointError(
            f"{entry.source or entry.folder} was not trained from {reference.model}: {wrong[0]} "
            f"has shape {found[wrong[0]]}, the base's is {base[wrong[0]]}. Name the right base "
            "with --base."
        )


def _vocabulary_size(folder: Path) -> int | None:
    config = read_record(folder / "config.json", dict[str, Any])
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else config).get("vocab_size")
    return size if isinstance(size, int) else None


def _is_resized(base: tuple[int, ...], found: tuple[int, ...], vocabulary: int | None) -> bool:
    """Whether two shapes are those of an embedding or head before and after a resize."""
    return base[:1] == (vocabulary,) and base[1:] == found[1:] and len(base) == len(found)


def _require_complete(entry: CheckpointEntry, found: Shapes, full: Shapes) -> None:
    """Raise an error if a whole model lacks tensors and has none in their place."""
    missing = sorted(set(full) - set(found) - _tied(Path(entry.folder), full))
    if missing and set(found) <= set(full):
        raise CheckpointError(
            f"{entry.source or entry.folder} is incomplete: it lacks {len(missing)} tensors of "
            f"the model, first {missing[0]!r}. transformers would put random values in their "
            "place. Save it again, or leave it out."
        )


def _tied(folder: Path, full: Shapes) -> set[str]:
    """The tensors that may be tied to others, and saved once: the embedding and the head."""
    path = folder / "config.json"
    config = read_record(path, dict[str, Any]) if path.is_file() else {}
    text = config.get("text_config")
    config |= text if isinstance(text, dict) else {}
    rows = config.get("vocab_size") if config.get("tie_word_embeddings", True) else None
    return {name for name, shape in full.items() if len(shape) == 2 and shape[0] == rows}
