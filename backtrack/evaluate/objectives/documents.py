"""Records for objectives, from a JSONL file or a data set.

The name of a data set is passed to `datasets` unchanged, so a folder of that name in the working
directory is read before the Hub, and works offline. No code of a data set runs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtrack.errors import ObjectiveError
from backtrack.recipe import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

JSONL_SUFFIXES = (".jsonl", ".ndjson")
_SLICE = re.compile(r"^[\w.-]*(?:\[(?P<first>-?\d+%?)?:(?P<last>-?\d+%?)?\])?$")


def load_records(path: str, subset: str | None, split: str) -> list[dict[str, Any]]:
    """Records of a JSONL file, or of one split of a data set.

    Args:
        path: A JSONL file, a folder `datasets` can load, or a Hub name.
        subset: Configuration name of a data set that has several; a JSONL file has none.
        split: Split, with a slice if any: `test[:500]`, `test[10%:]`. A JSONL file is one split of
            any name; the slice applies.

    Raises:
        ObjectiveError: The records cannot be read, or there are none.
    """
    if Path(path).is_file() and Path(path).suffix in JSONL_SUFFIXES:
        records = _sliced(_read_jsonl(Path(path)), split, path)
    else:
        records = _load_dataset(path, subset, split)
    if not records:
        raise ObjectiveError(f"{path}: split {split!r} holds no record.")
    return records


def render(form: str, record: Mapping[str, Any], where: str) -> str:
    """Fill a format with the fields of a record.

    Raises:
        ObjectiveError: The format names a field that the record lacks, or is not a valid format.
    """
    try:
        return form.format_map(record)
    except KeyError as error:
        field = str(error.args[0])
        raise ObjectiveError(
            f"{where} has no field {field!r}, which {form!r} asks for.{nearest(field, record)} "
            f"It has {', '.join(map(str, record))}."
        ) from error
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise ObjectiveError(
            f"{where}: {form!r} is not a valid format of its fields ({error}). "
            "Write {field} for a field, {{ and }} for braces."
        ) from error


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ObjectiveError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    return [_record(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]


def _record(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ObjectiveError(f"{path} line {number} is not JSON: {error.msg}.") from error
    if not isinstance(record, dict):
        raise ObjectiveError(
            f"{path} line {number} holds {type(record).__name__}, not an object with fields."
        )
    return record


def _sliced(records: Sequence[dict[str, Any]], split: str, path: str) -> list[dict[str, Any]]:
    found = _SLICE.match(split)
    if found is None:
        raise ObjectiveError(f"{path}: split {split!r} is not `name` or `name[first:last]`.")
    first, last = (_bound(found[end], len(records)) for end in ("first", "last"))
    return list(records[first:last])


def _bound(text: str | None, count: int) -> int | None:
    if text is None:
        return None
    return round(int(text[:-1]) * count / 100) if text.endswith("%") else int(text)


def _load_dataset(path: str, subset: str | None, split: str) -> list[dict[str, Any]]:
    import datasets

    try:
        found = datasets.load_dataset(path, subset, split=split)
    except Exception as error:
        raise ObjectiveError(
            f"the data set {path!r} (subset {subset or 'default'}, split {split!r}) cannot be "
            f"loaded: {' '.join(str(error).split())} Is the name right? It is a file or folder "
            "beside the recipe, a folder of that name in the working directory, or on the Hub."
        ) from error
    return [dict(record) for record in found]
