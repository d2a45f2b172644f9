"""Whether a folder has an export already, so that the same command goes on where it was killed."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from backtrack.errors import RunError
from backtrack.records.export import Exported
from backtrack.records.record import Record, short_digest
from backtrack.run.files import read_record, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from backtrack.point import Point
    from backtrack.records.export import AsForm
    from backtrack.records.selection import Selection
    from backtrack.run.directory import Run

RECORD = "backtrack.json"
Written = TypeVar("Written", bound=Record)


def made_of(run: Run, point: Point, form: AsForm, selection: Selection | None) -> Exported:
    """What an export is made of, before it has files."""
    facts = selection.model_dump(mode="json", exclude={"created", "command"}) if selection else {}
    return Exported(
        run=run.manifest.name,
        base=run.base.model,
        model=run.model_digest,
        checkpoint=run.checkpoint_digest(point),
        point=point.canonical,
        form=form,
        selection=short_digest(facts) if facts else "",
    )


def write_exported(folder: Path, made: Exported) -> None:
    """Record in a whole export what it was made of, and its files."""
    recorded = made.model_copy(update={"files": _sizes(folder)})
    write_atomically(folder / RECORD, recorded.model_dump_json(indent=2) + "\n")


def has_export(folder: Path, made: Exported) -> bool:
    """Whether a folder has an export made of the same, all its files with their sizes."""
    found = recorded(folder / RECORD, Exported)
    if found is None or found.model_copy(update={"files": {}}) != made:
        return False
    return found.files.items() <= _sizes(folder).items()


def recorded(path: Path, kind: type[Written]) -> Written | None:
    """What a file records; None if it is missing or damaged."""
    try:
        return read_record(path, kind)
    except RunError:
        return None


def _sizes(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
