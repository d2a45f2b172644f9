"""Keep what the model said beside the measurements, and read it without a model.

    answers/POINT.jsonl              a line for each measurement of a point, its answers packed
    answers/questions-NAME.json.zst  what the items of an objective ask
    answers/KEY.json.zst             one measurement's answers, as earlier versions kept them

Names are digests of what identifies a point or a measurement. Lines are appended whole; no score
depends on one. When the folder has reached `search.max_answer_bytes`, no more are written.
"""

from __future__ import annotations

import base64
import json
import logging
from typing import TYPE_CHECKING, TypeVar

import zstandard

from backtrack.errors import RunError
from backtrack.records.answers import Answer, Question
from backtrack.records.record import Record, short_digest
from backtrack.run.files import append_line, parse_record, read_lines, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from backtrack.records import Measurement, ObjectiveInfo
    from backtrack.run.directory import Run

Value = TypeVar("Value")

logger = logging.getLogger(__name__)

FOLDER = "answers"
MAX_CHARACTERS = 4_000
"""Of a prompt or a completion that are kept, from its start."""
MAX_BYTES = 200_000_000
"""Largest size of what is unpacked at once; more is not read."""


class AnswersKept:
    """Writes the answers of a run, up to a size."""

    def __init__(self, run: Run, max_bytes: int) -> None:
        self._folder = run.path / FOLDER
        self._max_bytes = max_bytes
        self._is_full = max_bytes == 0

    def keep(
        self,
        measurement: Measurement,
        answers: Mapping[str, Answer],
        questions: Callable[[str], Mapping[str, Question]],
    ) -> None:
        """Write one measurement's answers, and what its objective asks unless that is there.

        Args:
            measurement: The measurement.
            answers: What the model said, by item.
            questions: Gives what the items of an objective ask, by the objective's name.
        """
        if self._is_full or not answers:
            return
        path = question_file(self._folder, measurement.objective)
        if not path.exists():
            asked = questions(measurement.objective.name)
            packed_questions = _packed({i: _start_of(q).model_dump() for i, q in asked.items()})
            if self._has_room(len(packed_questions)):
                write_atomically(path, packed_questions)
        kept = {item_id: _shortened(answer) for item_id, answer in answers.items()}
        values = {item_id: answer.model_dump() for item_id, answer in kept.items()}
        packed = base64.b64encode(_packed(values)).decode()
        line = _Line(measurement=_key(measurement), answers=packed).model_dump_json()
        if self._has_room(len(line)):
            append_line(answer_file(self._folder, measurement), line)

    def _has_room(self, num_bytes: int) -> bool:
        """Whether the folder, which is made if missing, takes so many bytes more."""
        self._folder.mkdir(exist_ok=True)
        size = sum(each.stat().st_size for each in self._folder.iterdir())
        if size + num_bytes > self._max_bytes and not self._is_full:
            self._is_full = True
            logger.warning(
                "%s has reached its limit: no more answers are kept. Raise "
                "`search.max_answer_bytes` to keep them.", self._folder,
            )  # fmt: skip
        return not self._is_full


class _Line(Record):
    """One measurement's answers.

    Attributes:
        measurement: Its key.
        answers: JSON of the answers by item, compressed, in base 64.
    """

    measurement: str
    answers: str


def answer_file(folder: Path, m: Measurement) -> Path:
    """The file of the answers at a measurement's point."""
    return folder / f"{short_digest(m.point.canonical.model_dump(), m.checkpoint)}.jsonl"


def _key(m: Measurement) -> str:
    point = m.point.canonical.model_dump()
    return short_digest(point, m.checkpoint, m.setting, m.objective.name, m.split, m.item_ids)


def question_file(folder: Path, info: ObjectiveInfo) -> Path:
    """The file of what an objective's items ask."""
    return folder / f"questions-{short_digest(info.name, info.fingerprint)}.json.zst"


def read_answers(run: Run, measurements: Sequence[Measurement]) -> dict[str, Answer]:
    """Answers by item, of measurements of one objective at one point; without those not kept.

    Raises:
        RunError: A file is damaged.
    """
    found: dict[str, Answer] = {}
    wanted = {_key(m): m for m in measurements}
    for path in {answer_file(run.path / FOLDER, m) for m in measurements}:
        for line in read_lines(path, _Line):
            if wanted.pop(line.measurement, None) is not None:
                found |= _unpacked(path, _decoded(path, line.answers), dict[str, Answer])
    for key in wanted:
        found |= _read(run.path / FOLDER / f"{key}.json.zst", dict[str, Answer], {})
    return found


def _decoded(path: Path, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise _damaged(path, error) from error


def read_questions(run: Run, info: ObjectiveInfo) -> dict[str, Question]:
    """What an objective's items ask, by item; empty if that was not kept.

    Raises:
        RunError: The file is damaged.
    """
    return _read(question_file(run.path / FOLDER, info), dict[str, Question], {})


def _read(path: Path, kind: type[Value], if_missing: Value) -> Value:
    return _unpacked(path, path.read_bytes(), kind) if path.exists() else if_missing


def _packed(values: object) -> bytes:
    return zstandard.compress(json.dumps(values).encode())


def _unpacked(path: Path, packed: bytes, kind: type[Value]) -> Value:
    try:
        with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
            return parse_record(reader.read(MAX_BYTES), kind)
    except (ValueError, zstandard.ZstdError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"{path} is damaged: {error}. Delete it: no score depends on it.")


def _shortened(answer: Answer) -> Answer:
    texts = tuple(text[:MAX_CHARACTERS] for text in answer.texts)
    return answer.model_copy(update={"texts": texts})


def _start_of(question: Question) -> Question:
    return question.model_copy(update={"prompt": question.prompt[:MAX_CHARACTERS]})
