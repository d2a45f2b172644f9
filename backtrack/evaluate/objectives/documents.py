"""Records for objectives, from a JSONL file or a data set.

The name of a data set is passed to `datasets` unchanged, so a folder of that name in the working
directory is read before the Hub, and works offline. No code of a data set runs.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtrack.errors import ObjectiveError
from backtrack.recipe import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

MIN_SHARED_CHARACTERS = 200
"""A text this long that several records share is taken for a passage."""
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
    return list(iter_records(path, subset, split))


def iter_records(path: str, subset: str | None, split: str) -> Iterator[dict[str, Any]]:
    """Read the records of `load_records` one by one, holding one at a time.

    Args:
        path: As in `load_records`.
        subset: As in `load_records`.
        split: As in `load_records`. For a slice, the lines of a JSONL file are read twice.

    Raises:
        ObjectiveError: The records cannot be read, or there are none; raised where reading fails,
            after the records before it.
    """
    is_jsonl = Path(path).is_file() and Path(path).suffix in JSONL_SUFFIXES
    records = _iter_jsonl(Path(path), split) if is_jsonl else _iter_dataset(path, subset, split)
    is_empty = True
    for record in records:
        is_empty = False
        yield record
    if is_empty:
        raise ObjectiveError(f"{path}: split {split!r} holds no record.")


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


def render_field(name: str, record: Mapping[str, Any], where: str) -> str:
    """Fill a format with the fields of a record; a name without braces is that field.

    Raises:
        ObjectiveError: As by `render`.
    """
    return render(name if "{" in name else f"{{{name}}}", record, where)


def shared_field(records: Iterable[Mapping[str, Any]]) -> str | None:
    """Find a field whose long text most records share with another, though not all of them do."""
    num_records, counts = 0, defaultdict[str, Counter[str]](Counter)
    for record in records:
        num_records += 1
        for field, value in record.items():
            if isinstance(value, str) and len(value) >= MIN_SHARED_CHARACTERS:
                counts[field][value] += 1
    for field, texts in counts.items():
        num_sharing = sum(count for count in texts.values() if count > 1)
        if len(texts) > 1 and 2 * num_sharing > num_records:
            return field
    return None


def _iter_jsonl(path: Path, split: str) -> Iterator[dict[str, Any]]:
    """Records of a slice; lines outside of it are checked too."""
    is_wanted = _slice_filter(path, split)
    records = (_record(line, path, number) for number, line in _iter_lines(path))
    return (record for index, record in enumerate(records) if is_wanted(index))


def _iter_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line that is not blank."""
    try:
        with path.open(encoding="utf-8") as lines:
            yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ObjectiveError(f"{path} cannot be read as UTF-8 text: {error}.") from error


def _record(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # deep nesting, and integers of 5,000 digits
        cause = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise ObjectiveError(f"{path} line {number} is not JSON: {cause}.") from error
    if not isinstance(record, dict):
        raise ObjectiveError(
            f"{path} line {number} holds {type(record).__name__}, not an object with fields."
        )
    return record


def _slice_filter(path: Path, split: str) -> Callable[[int], bool]:
    """Whether the record of an index, from 0, is in the slice; bounds may count from the end."""
    bounds = _SLICE.match(split)
    if bounds is None:
        raise ObjectiveError(f"{path}: split {split!r} is not `name` or `name[first:last]`.")
    if bounds["first"] is None and bounds["last"] is None:
        return lambda _: True
    num_records = sum(1 for _ in _iter_lines(path))
    first, last = (_bound(bounds[end], num_records) for end in ("first", "last"))
    return range(num_records)[first:last].__contains__


def _bound(text: str | None, count: int) -> int | None:
    if text is None:
        return None
    return round(int(text[:-1]) * count / 100) if text.endswith("%") else int(text)


def _iter_dataset(path: str, subset: str | None, split: str) -> Iterator[dict[str, Any]]:
    """Rows of a data set, which `datasets` maps from disk."""
    import datasets

    try:
        yield from map(dict, datasets.load_dataset(path, subset, split=split))
    except Exception as error:
        raise ObjectiveError(
            f"the data set {path!r} (subset {subset or 'default'}, split {split!r}) cannot be "
            f"loaded: {' '.join(str(error).split())} Is the name right? It is a file or folder "
            "beside the recipe, a folder of that name in the working directory, or on the Hub."
        ) from error
