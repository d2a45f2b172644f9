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
from typing import TYPE_CHECKING, Any, Self

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
    from collections.abc import Callable, Mapping, Sequence

    from backtrack.evaluate.language_model import LanguageModel
    from backtrack.evaluate.objectives.lm_eval_library import TaskLibrary
    from backtrack.recipe import LmEvalObjective


class LmEvalScores(Objective):
    """One metric of lm-eval, one score per document; items are `task/number of the document`."""

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
        self.item_ids = tuple(
            f"{name}/{number}"
            for name, task in self._tasks.items()
            for number in range(len(task.eval_docs))
        )
        if section.cluster is None:
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
        numbers: dict[str, list[int]] = {}
        for item_id in item_ids:
            name, _, number = item_id.rpartition("/")
            numbers.setdefault(name, []).append(int(number))
        samples = {name: sorted(numbers[name]) for name in self._tasks if name in numbers}
        section = self._section.sampling
        sampling = None if section is None else Sampling(**section.model_dump())
        lm = AskedByLmEval(model, sampling)
        by_sample, said = [], dict[str, Answer]()
        for lm.number in range(sampling.samples if sampling else 1):
            records = evaluate_documents(lm, self._tasks, samples, self._section)
            by_sample.append(self._scores(records))
            self._collect(records, said)
        for item_id, answer in said.items():
            model.note(item_id, answer)
        scores = [fmean(each[item_id] for each in by_sample) for item_id in item_ids]
        return finite(scores, item_ids, self.info.name)

    @override
    def texts(self) -> tuple[str, ...]:
        """Each document as lm-eval asks it, without examples."""
        return tuple(
            str(task.doc_to_text(document))
            for task in self._tasks.values()
            for document in task.eval_docs
        )

    @override
    def questions(self) -> tuple[Question, ...]:
        return tuple(
            question_of(task, document)
            for task in self._tasks.values()
            for document in task.eval_docs
        )

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

    def _shared(self, cluster: str) -> list[str]:
        """What each document shares, by the recipe's field or format."""
        documents = [d for task in self._tasks.values() for d in task.eval_docs]
        pairs = zip(documents, self.item_ids, strict=True)
        return [render_field(cluster, document, item_id) for document, item_id in pairs]

    def _shared_field(self) -> str | None:
        fields = (shared_field(task.eval_docs) for task in self._tasks.values())
        return next((field for field in fields if field), None)

    def _scores(self, records: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
        """The metric by item, of the section's filter."""
        return {
            f"{name}/{record['doc_id']}": self._score(name, record)
            for name, of_task in records.items()
            for record in of_task
            if record["filter"] == self._section.filter
        }

    def _collect(
        self, records: Mapping[str, Sequence[Mapping[str, Any]]], said: dict[str, Answer]
    ) -> None:
        """Add one sample's answers to those of the samples before, by item."""
        for name, of_task in records.items():
            for record in of_task:
                if record["filter"] == self._section.filter:
                    item_id = f"{name}/{record['doc_id']}"
                    said[item_id] = answer_of(record, said.get(item_id, Answer()))

    def _score(self, name: str, record: Mapping[str, Any]) -> float:
        metric = self._section.metric
        if metric not in record:
            raise ObjectiveError(
                f"task {name!r} gives document {record['doc_id']} no metric {metric!r}; "
                f"it gives {', '.join(record['metrics'])}."
            )
        try:
            return float(record[metric])
        except (TypeError, ValueError) as error:
            raise ObjectiveError(
                f"metric {metric!r} of task {name!r} is not one number a document: document "
                f"{record['doc_id']} has {record[metric]!r}. Choose another metric."
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
