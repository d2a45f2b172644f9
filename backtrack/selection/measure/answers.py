"""Keep what the model said beside the measurements, and read it without a model.

    answers/KEY.json.zst             one measurement's answers, by item
    answers/questions-NAME.json.zst  what the items of an objective ask

A measurement's KEY is a digest of what identifies it. A file is absent or whole at any kill; no
score depends on one. When the folder has reached `search.max_answer_bytes`, no more are written.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, TypeVar

import zstandard

from backtrack.errors import RunError
from backtrack.records.answers import Answer, Question
from backtrack.records.record import short_digest
from backtrack.run.files import parse_record, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from backtrack.records import Measurement, ObjectiveInfo
    from backtrack.run.directory import Run

Value = TypeVar("Value")

logger = logging.getLogger(__name__)

FOLDER = "answers"
MAX_CHARACTERS = 4_000
"""Of a prompt or a completion that are kept, from its start."""
MAX_BYTES = 200_000_000
"""Largest size of one file once it is unpacked; a larger one is not read."""


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
            self._write(path, {i: _start_of(q).model_dump() for i, q in asked.items()})
        kept = {item_id: _shortened(answer) for item_id, answer in answers.items()}
        values = {item_id: answer.model_dump() for item_id, answer in kept.items()}
        self._write(answer_file(self._folder, measurement), values)

    def _write(self, path: Path, values: object) -> None:
        packed = zstandard.compress(json.dumps(values).encode())
        self._folder.mkdir(exist_ok=True)
        size = sum(each.stat().st_size for each in self._folder.iterdir())
        if size + len(packed) > self._max_bytes:
            self._is_full = True
            logger.warning(
                "%s has reached its limit: no more answers are kept. Raise "
                "`search.max_answer_bytes` to keep them.", self._folder,
            )  # fmt: skip
            return
        write_atomically(path, packed)


def answer_file(folder: Path, m: Measurement) -> Path:
    """The file of one measurement's answers."""
    point = m.point.canonical.model_dump()
    key = short_digest(point, m.checkpoint, m.setting, m.objective.name, m.split, m.item_ids)
    return folder / f"{key}.json.zst"


def question_file(folder: Path, info: ObjectiveInfo) -> Path:
    """The file of what an objective's items ask."""
    return folder / f"questions-{short_digest(info.name, info.fingerprint)}.json.zst"


def read_answers(run: Run, measurement: Measurement) -> dict[str, Answer]:
    """One measurement's answers by item; empty if they were not kept.

    Raises:
        RunError: The file is damaged.
    """
    return _read(answer_file(run.path / FOLDER, measurement), dict[str, Answer], {})


def read_questions(run: Run, info: ObjectiveInfo) -> dict[str, Question]:
    """What an objective's items ask, by item; empty if that was not kept.

    Raises:
        RunError: The file is damaged.
    """
    return _read(question_file(run.path / FOLDER, info), dict[str, Question], {})


def _read(path: Path, kind: type[Value], if_missing: Value) -> Value:
    if not path.exists():
        return if_missing
    try:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
            return parse_record(reader.read(MAX_BYTES), kind)
    except (ValueError, zstandard.ZstdError) as error:
        raise RunError(
            f"{path} is damaged: {error}. Delete it: no score depends on it."
        ) from error


def _shortened(answer: Answer) -> Answer:
    texts = tuple(text[:MAX_CHARACTERS] for text in answer.texts)
    return answer.model_copy(update={"texts": texts})


def _start_of(question: Question) -> Question:
    return question.model_copy(update={"prompt": question.prompt[:MAX_CHARACTERS]})
