"""Tasks of lm-eval as objectives, document by document.

Promised, unlike by lm-eval itself:
- a document's prompt is the same at every call and in every subset: its few-shot examples are
  drawn from a seed made of the document, not from one stream for all documents asked for;
- a task's documents are made once, so a task that shuffles them shuffles once;
- nothing of an earlier call is reused, since the weights may have changed in place;
- documents keep their ids: lm-eval is given them sorted, and never a `limit`;
- whatever a task samples at random starts from the same seed.
Not promised: the last bits when other documents are asked for, since they make other batches.
"""

from __future__ import annotations

import importlib.metadata
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from typing_extensions import override

from backtrack.errors import ObjectiveError
from backtrack.evaluate.encoding import user_turn
from backtrack.evaluate.language_model import Sampling
from backtrack.evaluate.objectives.documents import render_field, shared_field
from backtrack.evaluate.objectives.items import (
    cluster_items,
    digest,
    finite,
    positions,
    with_clusters,
)
from backtrack.evaluate.objectives.lm_eval_answers import answer_of, question_of
from backtrack.evaluate.objectives.lm_eval_lengths import CHARACTERS_PER_TOKEN, TASK_LENGTHS
from backtrack.evaluate.objectives.lm_eval_settle import SEED, task_digest
from backtrack.evaluate.objectives.objective import Objective
from backtrack.records.answers import Answer, Question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from backtrack.evaluate.language_model import LanguageModel
    from backtrack.evaluate.objectives.lm_eval_library import TaskLibrary
    from backtrack.recipe import LmEvalObjective

Made = TypeVar("Made")


class _Document(NamedTuple):
    """Where an item is: its task, its document and, of a metric over parts, its part."""

    task: str
    number: int
    part: int | None

    @property
    def item_id(self) -> str:
        part = "" if self.part is None else f".{self.part}"
        return f"{self.task}/{self.number}{part}"


class LmEvalScores(Objective):
    """One metric of lm-eval, one score an item; items are `task/number of the document`.

    Of a metric that is a mean over parts of documents, such as IFEval's over instructions, items
    are the parts, `task/number.part`: their mean is the task's own number, a ratio of sums. The
    parts of a document are one cluster, so that whole documents are drawn and resampled.
    """

    @override
    @classmethod
    def build_all(cls, sections: Sequence[LmEvalObjective], tokenizer: Any) -> list[Self]:
        """Objectives that share loaded tasks."""
        # lm-eval loads slowly.
        from backtrack.evaluate.objectives.lm_eval_library import TaskLibrary

        library = TaskLibrary([s.include_path for s in sections if s.include_path is not None])
        return [cls(section, tokenizer, library) for section in sections]

    @override
    def __init__(self, section: LmEvalObjective, tokenizer: Any, library: TaskLibrary) -> None:
        self._section = section
        self._tokenizer = tokenizer
        self._require_chat_template()
        self._tasks = library.tasks(section)
        self._where = {each.item_id: each for each in self._documents(section.metric)}
        self.item_ids = tuple(self._where)
        has_parts = any(each.part is not None for each in self._where.values())
        if section.cluster is None and not has_parts:
            self.shared_field = self._shared_field()
        else:
            self.clusters = cluster_items(self.item_ids, self._shared(section.cluster))
        self.info = section.info(self._fingerprint())

    @override
    def measure(self, model: LanguageModel, item_ids: Sequence[str]) -> tuple[float, ...]:
        """The metric of each document, in the order of `item_ids`.

        Raises:
            ObjectiveError: A document is unknown, lm-eval fails, or a score is not finite.
        """
        from backtrack.evaluate.objectives.lm_eval_library import evaluate_documents
        from backtrack.evaluate.objectives.lm_eval_model import AskedByLmEval

        if not item_ids:
            return ()
        positions(item_ids, self.item_ids, self.info.name)
        numbers: dict[str, set[int]] = {}
        for where in map(self._where.__getitem__, item_ids):
            numbers.setdefault(where.task, set()).add(where.number)
        samples = {name: sorted(numbers[name]) for name in self._tasks if name in numbers}
        section = self._section.sampling
        sampling = None if section is None else Sampling(**section.model_dump())
        lm = AskedByLmEval(model, sampling)
        by_sample, said = [], dict[tuple[str, int], Answer]()
        for lm.number in range(sampling.samples if sampling else 1):
            records = evaluate_documents(lm, self._tasks, samples, self._section)
            by_sample.append(self._records(records))
            for key, record in by_sample[-1].items():
                said[key] = answer_of(record, said.get(key, Answer()))
        scores = []
        for where in map(self._where.__getitem__, item_ids):
            key = where.task, where.number
            model.note(where.item_id, said[key])
            scores.append(fmean(self._score(where, each[key]) for each in by_sample))
        return finite(scores, item_ids, self.info.name)

    @override
    def texts(self) -> tuple[str, ...]:
        """Each item's document as lm-eval asks it, without examples."""
        return self._by_item(lambda task, document: str(task.doc_to_text(document)))

    @override
    def questions(self) -> tuple[Question, ...]:
        return self._by_item(question_of)

    @override
    def prompts(self) -> tuple[str, ...]:
        if not self._section.apply_chat_template:
            return self.texts()
        return tuple(user_turn(self._tokenizer, text) for text in self.texts())

    @override
    @classmethod
    def tokens_per_item(
        cls, section: LmEvalObjective, num_tokens: Callable[[str], float]
    ) -> float | None:
        """By recorded lengths of the task's documents; None for a task without."""
        lengths = TASK_LENGTHS.get(section.task)
        if lengths is None:
            return None
        num_read = lengths.read_bare if section.num_fewshot == 0 else lengths.read
        num_written = lengths.written
        if num_written and section.max_gen_toks:
            num_written = section.max_gen_toks
        return num_read / CHARACTERS_PER_TOKEN + num_written

    def _documents(self, metric: str) -> Iterator[_Document]:
        """Where each item is, in order."""
        # lm-eval loads slowly.
        from backtrack.evaluate.objectives.lm_eval_library import count_parts

        for name, task in self._tasks.items():
            counts = count_parts(name, task, metric)
            for number in range(len(task.eval_docs)):
                parts = (None,) if counts is None else range(counts[number])
                yield from (_Document(name, number, part) for part in parts)

    def _by_item(self, of_document: Callable[[Any, Any], Made]) -> tuple[Made, ...]:
        """What a function makes of each item's task and document, once a document."""
        found: dict[tuple[str, int], Made] = {}
        for name, number, _ in self._where.values():
            if (name, number) not in found:
                task = self._tasks[name]
                found[name, number] = of_document(task, task.eval_docs[number])
        return tuple(found[where.task, where.number] for where in self._where.values())

    def _shared(self, cluster: str | None) -> list[str]:
        """What each item shares: the recipe's field or format, else the document."""
        if cluster is None:
            return [str(where.number) for where in self._where.values()]
        documents = self._by_item(lambda _, document: document)
        pairs = zip(documents, self.item_ids, strict=True)
        return [render_field(cluster, document, item_id) for document, item_id in pairs]

    def _shared_field(self) -> str | None:
        fields = (shared_field(task.eval_docs) for task in self._tasks.values())
        return next((field for field in fields if field), None)

    def _records(
        self, records: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> dict[tuple[str, int], Mapping[str, Any]]:
        """lm-eval's records by task and document, of the section's filter."""
        return {
            (name, record["doc_id"]): record
            for name, of_task in records.items()
            for record in of_task
            if record["filter"] == self._section.filter
        }

    def _score(self, where: _Document, record: Mapping[str, Any]) -> float:
        metric = self._section.metric
        if metric not in record:
            raise ObjectiveError(
                f"task {where.task!r} gives document {where.number} no metric {metric!r}; "
                f"it gives {', '.join(record['metrics'])}."
            )
        value = record[metric]
        try:
            return float(value if where.part is None else value[where.part])
        except (TypeError, ValueError, IndexError) as error:
            raise ObjectiveError(
                f"metric {metric!r} of task {where.task!r} is not one number an item: document "
                f"{where.number} has {value!r}. Choose another metric."
            ) from error

    def _require_chat_template(self) -> None:
        section = self._section
        if section.fewshot_as_multiturn and not section.apply_chat_template:
            raise ObjectiveError(
                f"{section.task}: `fewshot_as_multiturn` needs `apply_chat_template: true`."
            )
        if section.apply_chat_template and self._tokenizer.chat_template is None:
            raise ObjectiveError(
                f"{section.task}: `apply_chat_template` is set, but the tokenizer has no chat "
                "template. Leave it out, or use the tokenizer of a chat model."
            )

    def _fingerprint(self) -> str:
        decides = self._section.model_dump(
            include={"metric", "filter", "apply_chat_template", "fewshot_as_multiturn"}
        )
        if self._section.sampling is not None:
            decides["sampling"] = self._section.sampling.model_dump()
        template = self._tokenizer.chat_template if decides["apply_chat_template"] else None
        versions = {name: importlib.metadata.version(name) for name in ("lm-eval", "datasets")}
        tasks = {name: task_digest(task) for name, task in self._tasks.items()}
        fingerprint = digest("lm_eval", decides, template, versions, SEED, tasks)
        return with_clusters(fingerprint, self.clusters)
